"""What the linear and embedding operators compute, in plain PyTorch.

`linear` of a quantized format is the kernel's own arithmetic, bit for bit: activations rounded
to int8 per row and group of 32, exact integer products, float32 sums over the groups in order.
`linear_dequantized` is what a perfect kernel without activation rounding would give.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import GROUP
from .formats import PANEL, unpack, unpack_groups

_SMALLEST_AMAX = 2.0**-100


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """[T, K] float32 -> quants [T, G, 32] and scales [T, G], both float32.

    scale = amax / 127, quant = x * (127 / amax) rounded to even. A group below 2^-100 is zero;
    one with a value that is not finite has a NaN scale and makes its row NaN.
    """
    groups = functional.pad(x, (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    finite = groups.isfinite().all(2, keepdim=True)
    amax = torch.where(finite, groups, 0).abs().amax(2, keepdim=True)
    used = finite & (amax >= _SMALLEST_AMAX)
    inverse = torch.full_like(amax, 127) / amax  # a number over a tensor would round twice
    quants = torch.where(used, groups * inverse, 0).round()
    scales = torch.where(used, amax / 127, torch.where(finite, 0.0, torch.nan))
    return quants, scales.squeeze(2)


def linear(format: str, x: Tensor, w: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """x [T, K] float32, w packed in `format` -> [T, N] float32."""
    if format == "dense":
        return functional.linear(x, unpack(format, w, out_features, x.shape[1]), bias)
    weight = unpack_groups(format, w, out_features)
    quants, scales = quantize_activations(x)
    sums = quants.sum(2)
    out = torch.zeros(x.shape[0], out_features)
    for g in range(weight.quants.shape[1]):
        # Below 2^24 in size, so float32 holds every partial sum exactly.
        dots = quants[:, g] @ weight.quants[:, g].float().T
        out = out + dots * (scales[:, g, None] * weight.scales[:, g])
        if weight.mins is not None:
            out = out + (scales[:, g] * sums[:, g])[:, None] * weight.mins[:, g]
    return out if bias is None else out + bias


def linear_dequantized(format: str, x: Tensor, w: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """The same product with exact weights and unrounded activations, in the dtype of `x`."""
    weight = unpack(format, w, out_features, x.shape[1]).to(x.dtype)
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def embedding(format: str, tokens: Tensor, w: Tensor, dim: int) -> Tensor:
    """tokens [T] int32, w packed in `format` -> rows [T, dim] float32."""
    return unpack(format, w, w.shape[0] * PANEL, dim)[tokens.long()]
