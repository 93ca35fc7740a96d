"""The linear and embedding operators as Python functions. In a graph, passes/assign_weight_kernels.py puts them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .bands import Band, write_bands
from .blocks import FORMATS


def quantize_activations(x: Tensor) -> Tensor:
    """x [T, K] float32 -> quantized activations, uint8 [T, ceil(K / 32), 48] (see activations.py). Rows of `x` may lie apart."""
    return cast(Tensor, torch.ops.engine.quantize(x))


def quantize_rows(x: Tensor) -> Tensor:
    """x [T, K] float32 -> activations with one scale per row, uint8 [T, bytes] (see activations.py). Rows of `x` may lie apart."""
    return cast(Tensor, torch.ops.engine.quantize_rows(x))


def round_activations(x: Tensor) -> Tensor:
    """x [T, K] float32 -> bfloat16 [T, K], an odd K made even by a zero. Rows of `x` may lie apart."""
    return cast(Tensor, torch.ops.engine.round_bf16(x))


def activations_for(kernel: str, x: Tensor) -> Tensor:
    """What the linear of a kernel takes for x [T, K] float32."""
    if kernel == "dense":
        return x
    if kernel == "bf16":
        return round_activations(x)
    return quantize_rows(x) if kernel in FORMATS and FORMATS[kernel].row_activations else quantize_activations(x)


def linear(
    kernel: str, x: Tensor, w: Tensor, bias: Tensor | None, out_features: int, residual: Tensor | None = None, multiplier: float = 1.0
) -> Tensor:
    """x [T, K] float32 times the packed weight, plus bias [N], times multiplier, plus residual [T, N], all float32 -> [T, N] float32.

    `kernel` is one of formats.PANEL_KERNELS and says how `w` is packed; `x` is quantized or rounded for it
    first. Rows of `x` and `residual` may lie apart in memory. Raises RuntimeError if
    shapes or dtypes do not fit.
    """
    x = activations_for(kernel, x)
    return cast(Tensor, getattr(torch.ops.engine, f"linear_{kernel}")(x, w, bias, residual, out_features, multiplier))


def linear_mixed(
    x: Tensor, w: Tensor, bias: Tensor | None, bands: Sequence[Band], residual: Tensor | None = None, multiplier: float = 1.0
) -> Tensor:
    """`linear` of a weight that has bands, packed one after another in uint8 [bytes] (see bands.py); N is the sum of their outputs."""
    return cast(Tensor, torch.ops.engine.linear_mixed(quantize_activations(x), w, bias, residual, write_bands(bands), multiplier))


def embedding(kernel: str, tokens: Tensor, w: Tensor, dim: int, multiplier: float = 1.0) -> Tensor:
    """Rows tokens [T] int32 of the packed weight [V, dim], times multiplier -> [T, dim] float32.

    Raises RuntimeError if a token is outside the vocabulary or shapes do not fit.
    """
    return cast(Tensor, getattr(torch.ops.engine, f"embedding_{kernel}")(tokens, w, dim, multiplier))
