"""What linears read: quantized activations as `engine.quantize` and `engine.quantize_rows` make them of float rows, and those of
`engine.round_bf16`.

quantize        uint8 [T, G, 48], one entry per row and group of 32 elements (K is padded with zeros):
                32 int8 quants, float32 scale, float32 scale * sum(quants), int32 sum(quants), int16 sums of the first and of the last 16
quantize_rows   uint8 [T, bytes]: int8 quants, filled up with zeros to a multiple of 64, float32 scale, int32 sum(quants), 56 zeros
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..formats import ACTIVATION_BYTES, GROUP, ROW_ALIGNMENT

_SMALLEST_AMAX = 2.0**-100


@dataclass(frozen=True)
class Activations:
    """What the bytes hold: quants [T, G, 32], scales and scaled_sums [T, G], all float32."""

    quants: Tensor
    scales: Tensor
    scaled_sums: Tensor


def quantize(x: Tensor) -> Tensor:
    """[T, K] float32 -> uint8 [T, ceil(K / 32), 48], bit for bit as the operator does.

    scale = amax / 127, quant = x * (127 / amax) rounded to even. A group below 2^-100 is zero;
    one with a value that is not finite has a NaN scale and makes its row NaN.
    """
    groups = functional.pad(x, (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    finite = groups.isfinite().all(2, keepdim=True)
    amax = torch.where(finite, groups, 0).abs().amax(2, keepdim=True)
    used = finite & (amax >= _SMALLEST_AMAX)
    inverse = torch.full_like(amax, 127) / amax  # a number over a tensor would round twice
    quants = torch.where(used, groups * inverse, 0).round().to(torch.int8)
    scales = torch.where(used, amax / 127, torch.where(finite, 0.0, torch.nan))
    halves = quants.unflatten(2, (2, -1)).sum(3, dtype=torch.int16)
    sums = halves.sum(2, keepdim=True, dtype=torch.int32)
    parts = (quants, scales, scales * sums, sums, halves)
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=2)


def quantize_rows(x: Tensor) -> Tensor:
    """[T, K] float32 -> uint8 [T, row_activation_bytes(K)], bit for bit as the operator does, and as compressed-tensors quantizes symmetric
    dynamic activations of 8 bits per token.

    scale = amax / 127.5, or 2^-23 where that is 0; quant = x / scale, at least -128 and at most 127, rounded to even. A row with a value
    that is not finite has a NaN scale.
    """
    finite = x.isfinite().all(1, keepdim=True)
    amax = torch.where(finite, x, 0).abs().amax(1, keepdim=True)
    scales = amax / 127.5
    scales = torch.where(scales == 0, torch.finfo(torch.float32).eps, scales)
    quants = torch.where(finite, x / scales, 0).clamp(-128, 127).round().to(torch.int8)
    sums = quants.sum(1, dtype=torch.int32, keepdim=True)
    padded = functional.pad(quants, (0, -x.shape[1] % ROW_ALIGNMENT))
    parts = (padded, torch.where(finite, scales, torch.nan), sums)
    row = torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)
    return functional.pad(row, (0, -row.shape[1] % ROW_ALIGNMENT))


def round_bf16(x: Tensor) -> Tensor:
    """[T, K] float32 -> [T, K] bfloat16, to the nearest, ties to even; an odd K is made even by a zero.

    Numbers below 2^-126 become zeros.
    """
    padded = functional.pad(x, (0, x.shape[1] % 2))
    return flush(padded).bfloat16()


def flush(x: Tensor) -> Tensor:
    """Zeros for numbers below 2^-126, the sign kept."""
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, x * 0, x)


QUANTIZERS: dict[str, Callable[[Tensor], Tensor]] = {"quantize": quantize, "quantize_rows": quantize_rows, "round_bf16": round_bf16}
"""The references of the operators that make the activations of CPU linears, by name."""


def unpack(packed: Tensor) -> Activations:
    """Take what `quantize` gives apart."""
    assert packed.shape[2] == ACTIVATION_BYTES, packed.shape
    quants, scales, scaled_sums, _ = packed.split((GROUP, 4, 4, 8), dim=2)

    def numbers(part: Tensor) -> Tensor:
        return part.contiguous().view(torch.float32).squeeze(2)

    return Activations(quants.contiguous().view(torch.int8).float(), numbers(scales), numbers(scaled_sums))


def unpack_rows(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Take what `quantize_rows` gives apart: quants with their padding, int8, and scales [T, 1] float32."""
    quants, scales, _ = packed.split((packed.shape[1] - ROW_ALIGNMENT, 4, ROW_ALIGNMENT - 4), dim=1)
    return quants.contiguous().view(torch.int8), scales.contiguous().view(torch.float32)
