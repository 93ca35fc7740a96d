"""Norms: over the residual stream, or over single heads of queries and keys.

Sources: RMSNorm, arXiv 1910.07467; LayerNorm, arXiv 1607.06450. A checkpoint whose norms multiply by
1 + weight is loaded with the sum (names.py): there is one norm, and no offset here.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """kind: root mean square, or mean and variance. weight, bias: what is learned; a bias needs a weight and the kind "layer"."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float
    weight: bool = True
    bias: bool = False

    def module(self, *shape: int) -> "RMSNorm | LayerNorm":
        """A norm over the last of `shape`, with a weight for each element of all of it."""
        return RMSNorm(self, shape) if self.kind == "rms" else LayerNorm(self, shape)


def applied(norm: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    """x [..., features] normalized; as it is without a norm."""
    return x if norm is None else norm(x)


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x ** 2) + eps)"""

    def __init__(self, spec: NormSpec, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape)) if spec.weight else None
        self.eps = spec.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., *shape] -> the same shape."""
        variance = x.pow(2).mean(-1, keepdim=True)
        normed = x * torch.rsqrt(variance + self.eps)
        return normed if self.weight is None else self.weight * normed


class LayerNorm(nn.Module):
    """weight * (x - mean(x)) / sqrt(variance(x) + eps) + bias"""

    def __init__(self, spec: NormSpec, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape)) if spec.weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if spec.bias else None
        self.eps = spec.eps
        self.size = shape[-1]
        self.over_all = len(shape) == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., *shape] -> the same shape."""
        if self.over_all:
            return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)
        normed = F.layer_norm(x, (self.size,), None, None, self.eps)
        if self.weight is not None:
            normed = normed * self.weight
        return normed if self.bias is None else normed + self.bias
