"""How linear and embedding weights lie in memory: the specification of the packed formats.

A weight [N, K] is cut into panels of 16 output rows; N is padded with zeros. A panel of a
quantized weight is cut into groups of 32 along K; K is padded with zeros.

- dense   [N/16, K, 16], float32, float16 or bfloat16: element (n, k) at [n // 16, k, n % 16].
- q8_0    uint8 [N/16, K/32, 544]: quants, 16 scales.          value = scale * q
- q4_0    uint8 [N/16, K/32, 288]: nibbles, 16 scales.         value = scale * (q - 8)
- q4_1    uint8 [N/16, K/32, 320]: nibbles, 16 scales, 16 mins. value = scale * q + min

Quants are int8 [8, 16, 4]: element (n, k) of the group at [k // 4, n, k % 4]. Nibbles are
bytes [4, 16, 4] = element (n, k) in the low half, element (n, k + 16) in the high half, at
[k // 4, n, k % 4] for k below 16. Scales and mins are float16, one per output row. They are
the very quants and the very scales of GGUF's blocks of the same names.

Legend: P panels, G groups along K.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .blocks import FORMATS
from .quantize import quantize

__all__ = ["PANEL", "Groups", "pack_blocks", "pack_dense", "quantize", "unpack", "unpack_groups"]

PANEL = 16


@dataclass(frozen=True)
class Groups:
    """The numbers in a packed weight. `quants` [N, G, 32] int8 (the zero point subtracted), `scales` and `mins` [N, G] float32."""

    quants: Tensor
    scales: Tensor
    mins: Tensor | None


def pack_dense(weight: Tensor) -> Tensor:
    """[N, K] float32, float16 or bfloat16 -> [N/16, K, 16] of the same dtype."""
    padded = functional.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return padded.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def pack_blocks(format: str, raw: Tensor) -> Tensor:
    """GGUF blocks, uint8 [N, G * block_bytes] -> uint8 [N/16, G, 16 * block_bytes]. Every bit is kept.

    Raises ValueError if the rows do not hold whole blocks.
    """
    spec = FORMATS[format]
    if raw.shape[1] % spec.block_bytes:
        raise ValueError(f"rows of {raw.shape[1]} bytes do not hold whole {format} blocks of {spec.block_bytes}")
    blocks = functional.pad(raw, (0, 0, 0, -raw.shape[0] % PANEL)).view(-1, PANEL, raw.shape[1] // spec.block_bytes, spec.block_bytes)
    scales, quants = blocks.split((2 * spec.scales, spec.quant_bytes), dim=3)
    scales_PGs16 = scales.unflatten(3, (spec.scales, 2)).permute(0, 2, 3, 1, 4)
    quants_PGk164 = quants.unflatten(3, (-1, 4)).permute(0, 2, 3, 1, 4)
    return torch.cat((quants_PGk164.flatten(2), scales_PGs16.flatten(2)), dim=2)


def unpack_groups(format: str, packed: Tensor, out_features: int) -> Groups:
    """Take a packed weight apart, without the padding rows."""
    spec = FORMATS[format]
    panels, groups, _ = packed.shape
    quants, scales = packed.split((PANEL * spec.quant_bytes, PANEL * 2 * spec.scales), dim=2)
    quants = quants.view(panels, groups, -1, PANEL, 4).permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)[:out_features]
    if spec.bits == 4:
        quants = torch.cat((quants & 0x0F, quants >> 4), dim=2)
    numbers = scales.contiguous().view(torch.float16).view(panels, groups, spec.scales, PANEL)
    numbers = numbers.permute(2, 0, 3, 1).flatten(1, 2)[:, :out_features].float()
    return Groups(quants.view(torch.int8) - spec.zero, numbers[0], numbers[1] if spec.has_min else None)


def unpack(format: str, packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """Packed weight, dense or quantized -> the float32 [N, K] it stands for, exactly."""
    if format == "dense":
        return packed.transpose(1, 2).flatten(0, 1)[:out_features].float()
    groups = unpack_groups(format, packed, out_features)
    values = groups.quants.float() * groups.scales[:, :, None]
    if groups.mins is not None:
        values = values + groups.mins[:, :, None]
    return values.flatten(1)[:, :in_features]
