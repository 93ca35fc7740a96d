"""Rows for the tests of row operators, and how far results are from the exact ones."""

import torch
from torch import Tensor

FEATURES = [1, 31, 32, 40, 64, 100, 576, 1537]


def rows(features: int, count: int = 9) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(features)) * 3


def inside_wider_rows(x: Tensor) -> Tensor:
    """The same values as a slice of a matrix of NaN."""
    wide = torch.full((x.shape[0], x.shape[1] + 50), torch.nan)
    wide[:, 20:-30] = x
    return wide[:, 20:-30]


def ulps(actual: Tensor, exact: Tensor) -> float:
    """Largest error in units of float32's relative precision; what e^-87 and less contributes may be lost."""
    return float(((actual.double() - exact).abs() / exact.abs().clamp_min(1e-27)).max()) * 2**23
