"""Rows of FP8 numbers, weights and activations alike: float8_e4m3fn [K], then float32 scales, then zeros to 16 bytes.

value = scale * number. fp8_channel: one scale per row, that is per token or per output channel.
fp8_tensor: rows as in fp8_channel, but the scale of activations is given, one for all tokens.
fp8_block: one per 128 elements of a row; of weights, whose scales are those of blocks of 128 x 128,
each row carries its own copy, so that merged linears are rows one after another.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .packed_rows import FP8_GROUP, fp8_row_bytes

LARGEST = 448.0
"""Largest finite float8_e4m3fn."""
SMALLEST_AMAX = 2.0**-100


def group_of(format: str, in_features: int) -> int:
    """Elements that share a scale."""
    return FP8_GROUP if format == "fp8_block" else in_features


def pack_fp8(format: str, numbers: Tensor, scales: Tensor) -> Tensor:
    """numbers [N, K] float8_e4m3fn; scales float32 [N, K / 128] (fp8_block) or [N, 1] (the others) -> uint8 [N, row_bytes]."""
    parts = torch.cat((numbers.view(torch.uint8), scales.contiguous().view(torch.uint8)), dim=1)
    return functional.pad(parts, (0, fp8_row_bytes(format, numbers.shape[1]) - parts.shape[1]))


def scales_of_rows(scales: Tensor, out_features: int) -> Tensor:
    """Scales of blocks of 128 x 128, [ceil(N / 128), G] -> a copy for each row, [N, G]."""
    return scales.repeat_interleave(FP8_GROUP, dim=0)[:out_features]


def unpack_fp8(format: str, packed: Tensor, in_features: int) -> Tensor:
    """uint8 [N, row_bytes] -> the float32 [N, K] it stands for."""
    group = group_of(format, in_features)
    numbers = packed[:, :in_features].contiguous().view(torch.float8_e4m3fn).float().unflatten(1, (-1, group))
    scales = packed[:, in_features : in_features + 4 * (in_features // group)].contiguous().view(torch.float32)
    unpacked: Tensor = (numbers * scales[:, :, None]).flatten(1)
    return unpacked


def quantize_fp8(format: str, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """[T, K] -> uint8 [T, row_bytes]: scale = amax / 448, number = x * (448 / amax) rounded to even; scale 1 where amax is below 2^-100.

    scale: [1] float32, in fp8_tensor: number = x * (1 / scale), each operation rounded to float32, then what is beyond -448 or 448
    (infinities too) becomes that, and the rest is rounded to even; NaN stays NaN.
    """
    if scale is not None:
        numbers = (x.float() * scale.reciprocal()).clamp(-LARGEST, LARGEST)
        return pack_fp8(format, numbers.to(torch.float8_e4m3fn), scale.expand(len(x), 1))
    groups = x.float().unflatten(1, (-1, group_of(format, x.shape[1])))
    amax = groups.abs().amax(2, keepdim=True)
    used = amax >= SMALLEST_AMAX
    scales = torch.where(used, amax / LARGEST, 1.0)
    inverse = torch.where(used, torch.full_like(amax, LARGEST) / amax, 1.0)  # a number over a tensor would round twice
    return pack_fp8(format, (groups * inverse).flatten(1).to(torch.float8_e4m3fn), scales[:, :, 0])
