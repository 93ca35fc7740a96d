"""How linear and embedding weights lie for NVIDIA: row by row, so that merged linears are rows one after another.

A dense weight is [N, K] as it is. A row of a quantized one, uint8, is in this order, each part
padded with zeros to 16 bytes:

- quants of the row's groups of 32 (K is padded with zeros): GGUF's own bytes, that is int8 for
  q8_0, and for q4_0 and q4_1 16 bytes with elements j in the low and j + 16 in the high half;
- one float16 scale per group;
- for q4_1 one float16 minimum per group.

value = scale * q (q8_0), scale * (q - 8) (q4_0), scale * q + min (q4_1): the very quants and scales
of GGUF's blocks.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..linear.blocks import FORMATS, GROUP
from ..linear.stored_blocks import split_head
from .packed_rows import ALIGNMENT, ROW_FORMATS, packed_shape

__all__ = ["pack_rows", "packed_shape", "scales_offset", "unpack_rows"]


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def scales_offset(format: str, in_features: int) -> tuple[int, int]:
    """Bytes from the start of a row to its scales, and from there to its minima (or to the row's end)."""
    groups = -(-in_features // GROUP)
    return _padded(groups * FORMATS[format].code_bytes), _padded(2 * groups)


def pack_rows(format: str, raw: Tensor) -> Tensor:
    """GGUF blocks, uint8 [N, G * block_bytes] -> uint8 [N, row_bytes]. Every bit is kept.

    Raises ValueError if the rows do not hold whole blocks, or a scale is not finite.
    """
    numbers, quants = split_head(format, raw)
    parts = [part.flatten(1) for part in (quants, *numbers.split(2, dim=2))]
    return torch.cat([functional.pad(part, (0, _padded(part.shape[1]) - part.shape[1])) for part in parts], dim=1)


def unpack_rows(format: str, packed: Tensor, in_features: int) -> Tensor:
    """Packed weight, dense or quantized -> the float32 [N, K] it stands for, exactly."""
    if format not in ROW_FORMATS:
        return packed.float()
    spec, groups = FORMATS[format], -(-in_features // GROUP)
    quants = packed[:, : groups * spec.code_bytes].unflatten(1, (groups, -1))
    if spec.bits == 4:
        quants = torch.cat((quants & 0x0F, quants >> 4), dim=2)
    values = (quants.contiguous().view(torch.int8) - spec.zero).float()
    at, size = scales_offset(format, in_features)
    numbers = [
        packed[:, at + i * size : at + i * size + 2 * groups].contiguous().view(torch.float16).float()[:, :, None]
        for i in range(spec.numbers)
    ]
    values = values * numbers[0]
    if spec.has_min:
        values = values + numbers[1]
    unpacked: Tensor = values.flatten(1)[:, :in_features]
    return unpacked
