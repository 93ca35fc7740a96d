"""NVFP4, which compressed-tensors, ModelOpt and GGUF files lay out each in their way, as the blocks of our kernels.

Codes in e2m1, a scale in e4m3 for every 16 of them, and one number for the tensor: value = code * (scale * number) (nvfp4_mul), or
value = code * (scale / number) (nvfp4_div), each operation rounded to float32. Every bit of all three is kept.
"""

import torch
from torch.nn import functional

from ...kernels.linear.blocks import FORMATS
from ...kernels.linear.formats import values_of
from ...kernels.linear.stored_blocks import read_blocks
from ..checkpoint import Format, LoadedTensor

SUBGROUP = 16
MUL, DIV = "nvfp4_mul", "nvfp4_div"
WIDENED = "NVFP4 in rows that are no multiple of 64"
_BLOCK = FORMATS[MUL].block


def nvfp4_format(columns: int, kind: Format) -> Format:
    """kind, or where rows are not whole blocks, the format in which they are widened."""
    return "f32" if columns % _BLOCK else kind


def load_nvfp4(kind: Format, codes: torch.Tensor, scales: torch.Tensor, number: torch.Tensor) -> LoadedTensor:
    """codes [N, K] 0 to 15, scales [N, K / 16] bytes, number one float32. In `nvfp4_format(K, kind)`.

    Raises ValueError for a scale that is no number, or a number that is not finite and positive.
    """
    if bool((scales.view(torch.uint8) & 0x7F == 0x7F).any()):
        raise ValueError("a scale is not a finite number")
    if not 0 < float(number) < torch.inf:
        raise ValueError(f"the scale of the tensor is {float(number):g}; it must be a positive, finite number")
    columns = codes.shape[1]
    blocks = _blocks(functional.pad(codes, (0, -columns % _BLOCK)), functional.pad(scales, (0, -columns % _BLOCK // SUBGROUP)), number)
    if columns % _BLOCK == 0:
        return LoadedTensor(format=kind, data=blocks)
    return LoadedTensor(format="f32", data=values_of(kind, read_blocks(kind, blocks))[:, :columns])


def _blocks(codes: torch.Tensor, scales: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """As kernels/linear/stored_blocks.py says, uint8 [N, bytes]."""
    of_blocks: torch.Tensor = scales.unflatten(1, (-1, _BLOCK // SUBGROUP))
    head = number.float().reshape(1).view(torch.uint8).expand(*of_blocks.shape[:2], 4)
    halves = codes.to(torch.uint8).unflatten(1, (of_blocks.shape[1], -1, 2, 16))
    nibbles = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    return torch.cat((head, of_blocks, nibbles.flatten(2)), dim=2).flatten(1)
