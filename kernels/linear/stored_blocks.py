"""Blocks of weights as they come from a checkpoint, taken apart. All numbers are little endian.

GGUF files have

    q8_0   d, 32 signed bytes
    q4_0   d, nibbles                              nibbles of 32 weights: 16 bytes, weight k in the low half of byte k and
    q4_1   d, m, nibbles                           weight k + 16 in the high half
    q5_0   d, fifth bits, nibbles                  fifth bits of 32 weights: a uint32, bit k for weight k
    q5_1   d, m, fifth bits, nibbles
    q4_k   d, m, scales, nibbles                   of 256 weights, nibbles: weights 64 i + k in the low half of byte 32 i + k and
    q5_k   d, m, scales, fifth bits, nibbles       64 i + 32 + k in the high half; fifth bits: bit j of byte k for weight 32 j + k
    q6_k   nibbles, upper bits, scales, d          of each 128, nibbles: weights k < 64 in the low half of byte k, k + 64 in the
                                                   high half; upper bits: bits 2 j and 2 j + 1 of byte k for weight 32 j + k;
                                                   scales: 16 signed bytes
    q2_k   scales and minima, pairs, d, m          pairs: of each 128, bits 2 j and 2 j + 1 of byte k for weight 32 j + k;
    q3_k   third bits, pairs, scales, d            scales and minima: 16 bytes, low and high halves; third bits: bit j of byte k
                                                   for weight 32 j + k
    iq4_nl, mxfp4                                  as q4_0; d of mxfp4 is one byte, an exponent
    iq4_xs d, scales' upper bits, scales' nibbles, nibbles     of each 32 weights as q4_0

The scales of q4_k and q5_k are 12 bytes: eight scales and eight minima of six bits each (see `_six_bits`). Those of q3_k are
16 of six bits in 12 bytes, those of iq4_xs eight of six bits in 6 bytes, all with 32 added.

Those of safetensors checkpoints, whose codes and scales lie in tensors of their own, are made by models/storage:

    w4_g32, w8_g128 and their like   d, zero point, codes: nibbles of each 32 weights as q4_0, or signed bytes
    nvfp4_mul, nvfp4_div             d, four scales, nibbles of each 32 weights as q4_0
    w8a8                             of a row: d, signed bytes

Our own, which no file has, are made by quantize.py:

    i4_g32, i5_g32, i6_g32           of a row: d, m, scales, minima, codes: a byte each
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import FORMATS, GROUP

BLOCK_BYTES = {
    "q8_0": 34,
    "q4_0": 18,
    "q4_1": 20,
    "q5_0": 22,
    "q5_1": 24,
    "iq4_nl": 18,
    "mxfp4": 17,
    "nvfp4_mul": 40,
    "nvfp4_div": 40,
    "q2_k": 84,
    "q3_k": 110,
    "q4_k": 144,
    "q5_k": 176,
    "q6_k": 210,
    "iq4_xs": 136,
    "w4_g32": 21,
    "w4_g64": 37,
    "w4_g128": 69,
    "w8_g32": 37,
    "w8_g64": 69,
    "w8_g128": 133,
}
_NUMBERS_LAST = ("q2_k", "q3_k", "q6_k")
Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Blocks:
    """Rows of blocks [N, B]. codes [N, B, block] and minima [N, B, block / subgroup] uint8 (codes of 8 bits: signed bytes); scales
    [N, B, block / subgroup] int8 (the bytes of e4m3; of rows uint8); head [N, B, bytes] uint8: d (and m, and the zero point) as they are
    stored."""

    codes: Tensor
    head: Tensor
    scales: Tensor | None = None
    minima: Tensor | None = None


def read_blocks(format: str, raw: Tensor) -> Blocks:
    """uint8 [N, B * bytes of a block]. Raises ValueError as `split_head` does."""
    head, rest = split_head(format, raw)
    if FORMATS[format].of_rows:
        groups = rest.shape[2] // _group_of_row(format)
        *integers, codes = rest.split((*[groups] * (_group_of_row(format) - GROUP), groups * GROUP), dim=2)
        return Blocks(codes, head, *integers)
    codes, *integers = _READERS[format](rest)
    return Blocks(codes, head, *integers)


def in_groups(format: str, raw: Tensor) -> Tensor:
    """Rows of w8a8 as blocks of w8_g128 and its like, which mean the same: every block has the row's scale, and the zero point 0."""
    head, codes = split_head("w8a8", raw)
    blocks = codes.flatten(1).unflatten(1, (-1, FORMATS[format].block))
    return torch.cat((head.expand(-1, blocks.shape[1], -1), torch.zeros_like(blocks[:, :, :1]), blocks), dim=2).flatten(1)


def in_features_of(format: str, row_bytes: int) -> int:
    """K, filled up to whole blocks, of rows of so many bytes as they come from a checkpoint."""
    spec = FORMATS[format]
    if spec.of_rows:
        return (row_bytes - spec.head_bytes) // _group_of_row(format) * GROUP
    return row_bytes // BLOCK_BYTES[format] * spec.block


def _group_of_row(format: str) -> int:
    """Bytes of a group where the row is a block: a scale and a minimum if there are any, and codes of a byte each."""
    spec = FORMATS[format]
    return spec.subscales * spec.numbers + GROUP


def split_head(format: str, raw: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N, B * bytes of a block] -> the numbers (and zero point) of every block, and what else is in it, both [N, B, bytes].

    Raises ValueError if the rows do not hold whole blocks, or a number is not finite.
    """
    spec = FORMATS[format]
    if spec.of_rows and (raw.shape[1] - spec.head_bytes) % _group_of_row(format):
        raise ValueError(f"rows of {raw.shape[1]} bytes do not hold {spec.head_bytes} and whole groups of {_group_of_row(format)}")
    size = raw.shape[1] if spec.of_rows else BLOCK_BYTES[format]
    if raw.shape[1] % size:
        raise ValueError(f"rows of {raw.shape[1]} bytes do not hold whole {format} blocks of {size}")
    blocks, count = raw.unflatten(1, (-1, size)), spec.head_bytes
    if format in _NUMBERS_LAST:
        rest, head = blocks.split((size - count, count), dim=2)
    else:
        head, rest = blocks.split((count, size - count), dim=2)
    finite = numbers_of(format, head).isfinite().all(2)
    if not bool(finite.all()):
        row, block = (~finite).nonzero()[0].tolist()
        raise ValueError(f"row {row}: the scale of block {block} is not a finite number")
    return head, rest


def numbers_of(format: str, head: Tensor) -> Tensor:
    """d (and m) of blocks, float32 [N, B, 1 or 2]. NaN for an exponent that means it."""
    spec = FORMATS[format]
    numbers = head[..., : spec.number_bytes * spec.numbers]
    if spec.number_bytes > 1:
        return numbers.clone(memory_format=torch.contiguous_format).view(torch.float16 if spec.number_bytes == 2 else torch.float32).float()
    exponent = numbers.to(torch.int32)
    # A power of two below the normal numbers is a bit of the fraction.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return torch.where(exponent == 255, torch.nan, bits.view(torch.float32))


# Each takes what is in a block beside its numbers, [N, B, bytes], and gives codes, and scales and minima if any.


def _bytes(blocks: Tensor) -> Parts:
    return (blocks,)


def _nibbles(blocks: Tensor) -> Parts:
    return (_halves(blocks.unflatten(-1, (-1, 16))).flatten(-2),)


def _five_bits(blocks: Tensor) -> Parts:
    fifth, nibbles = blocks.split((4, 16), dim=-1)
    bits = (fifth[..., None] >> _range(8) & 1).flatten(-2)
    return (_halves(nibbles) | bits << 4,)


def _scaled_nibbles(blocks: Tensor) -> Parts:
    scales, nibbles = blocks.split((4, 32), dim=-1)
    return *_nibbles(nibbles), scales.view(torch.int8)


def _k_two_bits(blocks: Tensor) -> Parts:
    both, pairs = blocks.split((16, 64), dim=-1)
    return _pairs(pairs), (both & 0x0F).view(torch.int8), both >> 4


def _k_three_bits(blocks: Tensor) -> Parts:
    third, pairs, packed = blocks.split((32, 64, 12), dim=-1)
    low, upper = packed.split((8, 4), dim=-1)
    scales = _halves(low) | (upper[..., None, :] >> 2 * _range(4)[:, None] & 3).flatten(-2) << 4
    return _pairs(pairs) | _planes(third) << 2, _less_32(scales)


def _k_nibbles(blocks: Tensor) -> Parts:
    packed, nibbles = blocks.split((12, 128), dim=-1)
    return _k_halves(nibbles), *_six_bits(packed)


def _k_five_bits(blocks: Tensor) -> Parts:
    packed, fifth, nibbles = blocks.split((12, 32, 128), dim=-1)
    return _k_halves(nibbles) | _planes(fifth) << 4, *_six_bits(packed)


def _k_six_bits(blocks: Tensor) -> Parts:
    nibbles, upper, scales = blocks.split((128, 64, 16), dim=-1)
    low = torch.cat((nibbles.unflatten(-1, (2, 64)) & 0x0F, nibbles.unflatten(-1, (2, 64)) >> 4), dim=-1).flatten(-2)
    return low | _pairs(upper) << 4, scales.view(torch.int8)


def _k_table(blocks: Tensor) -> Parts:
    upper, low, nibbles = blocks.split((2, 4, 128), dim=-1)
    low = torch.stack((low & 0x0F, low >> 4), dim=-1).flatten(-2)
    scales = low | (upper[..., None] >> 2 * _range(4) & 3).flatten(-2) << 4
    return *_nibbles(nibbles), _less_32(scales)


_READERS: dict[str, Callable[[Tensor], Parts]] = {
    "q8_0": _bytes,
    "q4_0": _nibbles,
    "q4_1": _nibbles,
    "q5_0": _five_bits,
    "q5_1": _five_bits,
    "iq4_nl": _nibbles,
    "mxfp4": _nibbles,
    "nvfp4_mul": _scaled_nibbles,
    "nvfp4_div": _scaled_nibbles,
    "q2_k": _k_two_bits,
    "q3_k": _k_three_bits,
    "q4_k": _k_nibbles,
    "q5_k": _k_five_bits,
    "q6_k": _k_six_bits,
    "iq4_xs": _k_table,
    "w4_g32": _nibbles,
    "w4_g64": _nibbles,
    "w4_g128": _nibbles,
    "w8_g32": _bytes,
    "w8_g64": _bytes,
    "w8_g128": _bytes,
}


def _range(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.uint8)


def _halves(nibbles: Tensor) -> Tensor:
    return torch.cat((nibbles & 0x0F, nibbles >> 4), dim=-1)


def _k_halves(nibbles: Tensor) -> Tensor:
    return _halves(nibbles.unflatten(-1, (4, 32))).flatten(-2)


def _planes(bits: Tensor) -> Tensor:
    """[..., 32] -> [..., 256]: bit j of byte k for weight 32 j + k."""
    return (bits[..., None, :] >> _range(8)[:, None] & 1).flatten(-2)


def _pairs(pairs: Tensor) -> Tensor:
    """[..., 64] -> [..., 256]: of each 128, bits 2 j and 2 j + 1 of byte k for weight 32 j + k."""
    shared: Tensor = pairs.unflatten(-1, (2, 1, 32))
    return (shared >> 2 * _range(4)[:, None] & 3).flatten(-3)


def _less_32(scales: Tensor) -> Tensor:
    return (scales.to(torch.int16) - 32).to(torch.int8)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima: of the first four, the low six bits of bytes 0-3 and 4-7; of the last four, the low half
    and the high half of bytes 8-11, with the upper two bits of bytes 0-3 and 4-7 above them."""
    first, second, rest = packed.split(4, dim=-1)
    scales = torch.cat((first & 63, (rest & 0x0F) | first >> 6 << 4), dim=-1)
    minima = torch.cat((second & 63, rest >> 4 | second >> 6 << 4), dim=-1)
    return scales.view(torch.int8), minima
