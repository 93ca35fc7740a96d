"""How linear and embedding weights lie in memory: the specification of the packed formats.

A weight [N, K] is cut into panels of 16 output rows; N is padded with zeros. A panel of a
quantized weight is cut into blocks along K, and those into groups of 32; K is padded with zeros.

- dense      [N/16, K, 16], float32 or float16: element (n, k) at [n // 16, k, n % 16].
- bf16       [N/16, K/2, 16, 2], bfloat16: element (n, k) at [n // 16, k // 2, n % 16, k % 2]; K is padded with zeros to pairs.
- quantized  uint8 [N/16, K/block, 16 * packed_bytes] (see blocks.py), or [N/16, 1, bytes] where a row is a block. The head of
  a block of a panel is 16 d, then 16 m if any, then 16 zero points if any. A block of one group is its codes and then its
  head. A larger one, and a row, is its head, then for each of its groups the codes, and of two levels 16 scales (two rows of
  16 where they are for 16 weights each) and as many integer minima if any.

d and m are float16, float32 or one byte of exponent; scales are signed integers, e4m3 or of rows unsigned integers, zero points
signed integers. Codes of 8 bits are [8, 16, 4]: element (n, k) of the group at [k // 4, n, k % 4]. Others are cut into planes:
four bits (of codes below 4 bits, two), then the bits above them, if any. With q = k // 4, a plane of
4 bits is [4, 16, 4], q below 4 in the low half of [q, n, k % 4] and q + 4 in the high half;
2 bits is [2, 16, 4], bits 2i and 2i + 1 of [q // 4, n, k % 4] for q % 4 == i;
1 bit is [1, 16, 4], bit q of [0, n, k % 4].
They are the very codes and the very numbers of the blocks of the same names (stored_blocks.py).

Legend: P panels, B blocks along K, G groups along K.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import FORMATS, GROUP, QuantizedFormat
from .quantize import quantize
from .stored_blocks import Blocks, numbers_of, read_blocks

__all__ = ["PANEL", "Groups", "pack_blocks", "pack_dense", "quantize", "unpack", "unpack_blocks", "unpack_groups", "values_of"]

PANEL = 16


@dataclass(frozen=True)
class Groups:
    """The numbers in a packed weight as linears read them: value = scales * quants + mins * min_steps, but for roundings of zero points
    and of scales in e4m3.

    quants [N, G, 32] int16: what the codes stand for, times the integer scale of 16 weights where there is one. scales and mins [N, G]
    float32. min_steps [N, G, 2] float32: the integer minima of both halves, where they have their own; 1 otherwise. half_scales
    [N, G, 2] float32: of both halves, where they are in e4m3.
    """

    quants: Tensor
    scales: Tensor
    mins: Tensor | None = None
    min_steps: Tensor | None = None
    half_scales: Tensor | None = None


def pack_dense(weight: Tensor) -> Tensor:
    """[N, K] float32 or float16 -> [N/16, K, 16], bfloat16 -> [N/16, K/2, 16, 2], of the same dtype."""
    pairs = weight.dtype == torch.bfloat16
    padded = functional.pad(weight, (0, weight.shape[1] % 2 if pairs else 0, 0, -weight.shape[0] % PANEL))
    steps: Tensor = padded.unflatten(1, (-1, 2)) if pairs else padded
    panels: Tensor = steps.unflatten(0, (-1, PANEL))
    return panels.transpose(1, 2).contiguous()


def pack_blocks(format: str, raw: Tensor) -> Tensor:
    """GGUF blocks, uint8 [N, B * bytes of a block] -> uint8 [N/16, B, 16 * packed_bytes]. Every bit is kept.

    Raises ValueError if the rows do not hold whole blocks, or a scale is not finite.
    """
    spec, blocks = FORMATS[format], read_blocks(format, functional.pad(raw, (0, 0, 0, -raw.shape[0] % PANEL)))
    numbers, zeros = blocks.head.split((spec.number_bytes * spec.numbers, int(spec.has_zero_point)), dim=2)
    head = torch.cat((_panels(numbers, spec.numbers).flatten(2), zeros.unflatten(0, (-1, PANEL)).transpose(1, 2).flatten(2)), dim=2)
    groups = [_pack_codes(spec.bits, blocks.codes)]
    integers = (each.view(torch.uint8) for each in (blocks.scales, blocks.minima) if each is not None)
    groups += [_panels(each, blocks.codes.shape[2] // GROUP).transpose(3, 4).flatten(3) for each in integers]
    packed = torch.cat(groups, dim=3).flatten(2)
    return torch.cat((head, packed) if spec.head_first else (packed, head), dim=2)


def _panels(rows: Tensor, parts: int) -> Tensor:
    """[N, B, parts * size] -> [P, B, parts, 16, size]"""
    panels: Tensor = rows.unflatten(0, (-1, PANEL)).unflatten(3, (parts, -1))
    return panels.permute(0, 2, 3, 1, 4)


def _planes(bits: int) -> list[tuple[int, int]]:
    """Width of each plane of a code, and the bits below it."""
    low = 4 if bits >= 4 else 2
    return [(low, 0), (bits - low, low)] if bits > low else [(low, 0)]


def _pack_codes(bits: int, codes: Tensor) -> Tensor:
    """[N, B, block] -> [P, B, groups of a block, bytes]"""
    whole = codes.contiguous().view(torch.int32)  # quads are moved as one number
    quads: Tensor = whole.unflatten(0, (-1, PANEL)).unflatten(3, (-1, GROUP // 4)).permute(0, 2, 3, 4, 1).contiguous().view(torch.uint8)
    if bits == 8:
        return quads.flatten(3)
    parts = []
    for width, below in _planes(bits):
        # Those that share a byte, along the fifth dimension.
        shared = quads.unflatten(3, (2, 4)).transpose(3, 4) if width == 4 else quads.unflatten(3, (-1, 8 // width))
        moved = [(quad >> below & (1 << width) - 1) << i * width for i, quad in enumerate(shared.unbind(4))]
        parts.append(reduce(torch.bitwise_or, moved).flatten(3))
    return torch.cat(parts, dim=3)


def _unpack_codes(bits: int, packed: Tensor) -> Tensor:
    """What `_pack_codes` was given, [N, B, groups of a block, 32]."""
    if bits == 8:
        quads: Tensor = packed.unflatten(3, (GROUP // 4, PANEL, 4))
        return quads.permute(0, 4, 1, 2, 3, 5).flatten(4).flatten(0, 1)
    codes = torch.zeros((), dtype=torch.uint8)
    parts = packed.split([PANEL * GROUP * width // 8 for width, _ in _planes(bits)], dim=3)
    for (width, below), part in zip(_planes(bits), parts, strict=True):
        shared = part.unflatten(3, (1, -1, PANEL, 4)) >> _shifts(width) & (1 << width) - 1
        shared = shared if width == 4 else shared.transpose(3, 4)
        codes = codes | shared.flatten(3, 4) << below
    return codes.permute(0, 4, 1, 2, 3, 5).flatten(4).flatten(0, 1)


def _shifts(width: int) -> Tensor:
    """Of the quads that share a byte, along the fourth dimension."""
    return torch.arange(0, 8, width, dtype=torch.uint8)[:, None, None, None]


def unpack_blocks(format: str, packed: Tensor, out_features: int) -> Blocks:
    """Take a packed weight apart again, without the padding rows."""
    spec = FORMATS[format]
    sizes = (PANEL * spec.head_bytes, packed.shape[2] - PANEL * spec.head_bytes)
    head, rest = packed.split(sizes, dim=2) if spec.head_first else reversed(packed.split(sizes[::-1], dim=2))
    codes, *integers = rest.unflatten(2, (-1, PANEL * spec.group_bytes)).split(
        [PANEL * size for size in (spec.code_bytes, *[spec.subscales] * spec.numbers * spec.two_levels)], dim=3
    )
    numbers, zeros = head.split((PANEL * spec.number_bytes * spec.numbers, PANEL * spec.has_zero_point), dim=2)
    numbers = numbers.unflatten(2, (spec.numbers, PANEL, spec.number_bytes)).permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)
    zeros = zeros.unflatten(2, (-1, PANEL)).permute(0, 3, 1, 2).flatten(0, 1)
    integers = [each.unflatten(3, (-1, PANEL)).permute(0, 4, 1, 2, 3).flatten(3).flatten(0, 1) for each in integers]
    integers = [each if i or spec.of_rows else each.view(torch.int8) for i, each in enumerate(integers)]
    return Blocks(
        *(part[:out_features] for part in (_unpack_codes(spec.bits, codes).flatten(2), torch.cat((numbers, zeros), dim=2), *integers))
    )


def unpack_groups(format: str, packed: Tensor, out_features: int) -> Groups:
    """The numbers of a packed weight, without the padding rows."""
    return _groups_of(format, unpack_blocks(format, packed, out_features))


def _groups_of(format: str, blocks: Blocks) -> Groups:
    spec = FORMATS[format]
    quants = _meanings(spec, blocks)
    quants = quants.unflatten(2, (-1, GROUP)).flatten(1, 2)
    numbers = numbers_of(format, blocks.head)
    d, m = numbers[:, :, :1], numbers[:, :, 1:]
    if spec.has_zero_point:
        m = -(d * blocks.head[:, :, -1:].view(torch.int8))
    if spec.e4m3_scales:
        d = torch.where(d == 0, 0, 1 / d) if spec.divides else d
        return Groups(quants, d.expand(-1, -1, spec.groups).flatten(1), half_scales=_half_e4m3(blocks).unflatten(2, (-1, 2)).flatten(1, 2))
    if blocks.scales is None:
        scales, mins = (each.expand(-1, -1, spec.groups * each.shape[2]).flatten(1) for each in (d, m))
        return Groups(quants, scales, mins if m.shape[2] else None)
    if spec.subgroup == GROUP:
        return Groups(quants, (d * blocks.scales).flatten(1), None if blocks.minima is None else -(m * blocks.minima).flatten(1))
    quants = quants * blocks.scales.to(torch.int16).unflatten(2, (-1, 2)).flatten(1, 2).repeat_interleave(spec.subgroup, dim=2)
    scales = d.expand(-1, -1, spec.groups).flatten(1)
    if blocks.minima is None:
        return Groups(quants, scales)
    steps = blocks.minima.float().unflatten(2, (-1, 2)).flatten(1, 2)
    return Groups(quants, scales, -m.expand(-1, -1, spec.groups).flatten(1), steps)


def _half_e4m3(blocks: Blocks) -> Tensor:
    """The scales of every 16 weights, halved, float32 [N, B, block / 16]."""
    assert blocks.scales is not None
    return blocks.scales.view(torch.float8_e4m3fn).float() / 2


def _meanings(spec: QuantizedFormat, blocks: Blocks) -> Tensor:
    """What codes stand for, int16 [N, B, block]."""
    if spec.table:
        return torch.tensor(spec.table, dtype=torch.int16)[blocks.codes.int()]
    return (blocks.codes.view(torch.int8) if spec.bits == 8 else blocks.codes).to(torch.int16) - spec.zero


def unpack(format: str, packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """Packed weight, dense or quantized -> the float32 [N, K] it stands for, exactly."""
    if format in ("dense", "bf16"):
        return packed.transpose(1, 2).flatten(0, 1).flatten(1)[:out_features, :in_features].float()
    return values_of(format, unpack_blocks(format, packed, out_features))[:, :in_features]


def values_of(format: str, blocks: Blocks) -> Tensor:
    """The float32 [N, B * block] that blocks stand for, exactly."""
    if FORMATS[format].has_zero_point:
        codes = _meanings(FORMATS[format], blocks) - blocks.head[:, :, -1:].view(torch.int8)
        return (codes.float() * numbers_of(format, blocks.head)).flatten(1)
    if FORMATS[format].e4m3_scales:
        return _of_e4m3_scales(FORMATS[format], blocks)
    groups = _groups_of(format, blocks)
    values = groups.quants.float() * groups.scales[:, :, None]
    if groups.mins is not None:
        steps = torch.ones(()) if groups.min_steps is None else groups.min_steps.repeat_interleave(GROUP // 2, dim=2)
        values = values + groups.mins[:, :, None] * steps
    return values.flatten(1)


def _of_e4m3_scales(spec: QuantizedFormat, blocks: Blocks) -> Tensor:
    """scale * d * code or scale / d * code, rounded after each; float32 [N, K]. A block whose d is 0 is zero: padding."""
    scales, d = _half_e4m3(blocks), numbers_of(spec.name, blocks.head)
    scales = torch.where(d == 0, 0, scales / d) if spec.divides else scales * d
    values: Tensor = _meanings(spec, blocks).float() * scales.repeat_interleave(spec.subgroup, dim=2)
    return values.flatten(1)
