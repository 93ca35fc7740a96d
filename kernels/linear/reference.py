"""What the linear and embedding operators compute, in plain PyTorch.

`linear` of a quantized format is the kernel's own arithmetic, bit for bit: exact integer
products of quantized activations and weights, float32 sums over the groups in order.
`linear_dequantized` is what a perfect kernel without activation rounding would give.
"""

import torch
from torch import Tensor
from torch.nn import functional

from . import activations
from .formats import PANEL, unpack, unpack_groups


def linear(format: str, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, out_features: int, multiplier: float) -> Tensor:
    """x [T, K] float32, quantized (see activations.py) unless `format` is "dense"; w packed in `format` -> [T, N] float32."""
    out = _dense(x, w, out_features) if format == "dense" else _quantized(format, activations.unpack(x), w, out_features)
    if bias is not None:
        out = out + bias
    out = out * multiplier
    return out if residual is None else out + residual


def _dense(x: Tensor, w: Tensor, out_features: int) -> Tensor:
    return functional.linear(x, unpack("dense", w, out_features, x.shape[1]))


def _quantized(format: str, x: activations.Activations, w: Tensor, out_features: int) -> Tensor:
    weight = unpack_groups(format, w, out_features)
    out = torch.zeros(x.quants.shape[0], out_features)
    for g in range(weight.quants.shape[1]):
        # Below 2^24 in size, so float32 holds every partial sum exactly.
        dots = x.quants[:, g] @ weight.quants[:, g].float().T
        out = out + dots * (x.scales[:, g, None] * weight.scales[:, g])
        if weight.mins is not None:
            out = out + x.scaled_sums[:, g, None] * weight.mins[:, g]
    return out


def linear_dequantized(format: str, x: Tensor, w: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """The same product with exact weights and unrounded activations [T, K], in the dtype of `x`."""
    weight = unpack(format, w, out_features, x.shape[1]).to(x.dtype)
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def embedding(format: str, tokens: Tensor, w: Tensor, dim: int, multiplier: float) -> Tensor:
    """tokens [T] int32, w packed in `format` -> rows [T, dim] float32, times multiplier."""
    return unpack(format, w, w.shape[0] * PANEL, dim)[tokens.long()] * multiplier
