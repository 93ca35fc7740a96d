"""How linear and embedding weights lie for NVIDIA: row by row, so that merged linears are rows one after another.

A dense weight is [N, K] as it is. A row of a quantized one, uint8, is cut along K into units of one to eight groups of 32
weights (see `unit_groups`; K is filled up with zeros), and is in this order, each part padded with zeros to 16 bytes:

- planes of codes, in runs of 32 bytes. Of a plane of `width` bits, run r has those of the groups 8 / width * r + i, with
  weight k of a group in byte k, from bit width * i on: the low halves of a run of nibbles are one group, the high halves the next;
- d, and m after it, of every block, or of the row if that is one;
- the zero point of every block, if it has one, a signed byte;
- of two levels, for every group its scales, integers or e4m3, and then its integer minima.

They are the very codes and the very numbers of the checkpoint's blocks (see linear/blocks.py).
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..linear.blocks import FORMATS, GROUP
from ..linear.formats import values_of
from ..linear.stored_blocks import Blocks, read_blocks
from .packed_rows import ROW_FORMATS, Plane, packed_shape, part_bytes, planes, unit_groups

__all__ = ["pack_rows", "packed_shape", "unpack_rows"]


def pack_rows(format: str, raw: Tensor) -> Tensor:
    """Blocks of a checkpoint, uint8 [N, B * bytes of a block] -> uint8 [N, row_bytes]. Every bit is kept.

    Raises ValueError if the rows do not hold whole blocks, or a scale is not finite.
    """
    spec, blocks = FORMATS[format], read_blocks(format, raw)
    codes = _in_units(format, blocks.codes.flatten(1).unflatten(1, (-1, GROUP)))
    parts = {f"plane{plane.below}": _pack_plane(plane, codes) for plane in planes(format)}
    numbers = spec.number_bytes * spec.numbers
    parts["numbers"] = blocks.head[:, :, :numbers].flatten(1)
    parts["zeros"] = blocks.head[:, :, numbers:].flatten(1)
    integers = [each.view(torch.uint8).unflatten(2, (-1, spec.subscales)) for each in (blocks.scales, blocks.minima) if each is not None]
    if integers:
        parts["integers"] = torch.cat(integers, dim=3).flatten(1)
    sizes = part_bytes(format, blocks.codes.shape[1] * blocks.codes.shape[2])
    return torch.cat([functional.pad(parts[name], (0, size - parts[name].shape[1])) for name, size in sizes.items()], dim=1)


def unpack_rows(format: str, packed: Tensor, in_features: int) -> Tensor:
    """Packed weight, dense or quantized -> the float32 [N, K] it stands for, exactly."""
    if format not in ROW_FORMATS:
        return packed.float()
    return values_of(format, unpack_row_blocks(format, packed, in_features))[:, :in_features]


def unpack_row_blocks(format: str, packed: Tensor, in_features: int) -> Blocks:
    """What `pack_rows` read from the checkpoint's blocks."""
    spec, sizes = FORMATS[format], part_bytes(format, in_features)
    blocks = -(-in_features // spec.block)
    groups = blocks * spec.groups
    blocks = 1 if spec.of_rows else blocks
    parts = dict(zip(sizes, packed.split(list(sizes.values()), dim=1), strict=True))
    codes = torch.zeros((), dtype=torch.uint8)
    for plane in planes(format):
        codes = codes | _unpack_plane(plane, parts[f"plane{plane.below}"], groups) << plane.below
    heads = [(name, size) for name, size in (("numbers", spec.number_bytes * spec.numbers), ("zeros", 1)) if name in parts]
    head = torch.cat([parts[name][:, : blocks * size].unflatten(1, (blocks, size)) for name, size in heads], dim=2)
    integers: list[Tensor] = []
    if spec.two_levels:
        each = parts["integers"][:, : groups * spec.subscales * spec.numbers]
        integers = [kind.flatten(2) for kind in each.unflatten(1, (blocks, -1, spec.numbers, spec.subscales)).unbind(3)]
        integers[0] = integers[0] if spec.of_rows else integers[0].view(torch.int8)
    return Blocks(codes.flatten(1).unflatten(1, (blocks, -1)), head, *integers)


def _in_units(format: str, codes: Tensor) -> Tensor:
    """[N, G, 32], with as many groups more as make whole units."""
    return functional.pad(codes, (0, 0, 0, -codes.shape[1] % unit_groups(format)))


def _pack_plane(plane: Plane, codes: Tensor) -> Tensor:
    """[N, G, 32] -> its bits of them, [N, bytes]."""
    bits: Tensor = (codes >> plane.below & (1 << plane.width) - 1).unflatten(1, (-1, plane.parts))
    return (bits << _shifts(plane)).sum(2, dtype=torch.uint8).flatten(1)


def _unpack_plane(plane: Plane, packed: Tensor, groups: int) -> Tensor:
    """[N, bytes] -> [N, groups, 32]"""
    runs: Tensor = packed[:, : packed.shape[1] // GROUP * GROUP].unflatten(1, (-1, 1, GROUP))
    bits: Tensor = runs >> _shifts(plane) & (1 << plane.width) - 1
    return bits.flatten(1, 2)[:, :groups]


def _shifts(plane: Plane) -> Tensor:
    """Of the groups that share a run, along their dimension."""
    return torch.arange(0, 8, plane.width, dtype=torch.uint8)[:, None]
