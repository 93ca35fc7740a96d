"""NVFP4 as GGUF files have it: blocks of 64 weights, four scales and 32 bytes of codes.

A scale is an e4m3 byte without a sign, of which 0x7f means 0. Of each 16 weights, weight k lies in the low half of byte k and weight
k + 8 in the high half. The number of the tensor NAME.weight is NAME.scale, float32 [1], or 1 where there is none; NAME.input_scale, of
its activations, is not used.
"""

from collections.abc import Mapping

import torch
from gguf import GGMLQuantizationType

from ...errors import CheckpointError
from ..checkpoint import LoadedTensor
from .file_ranges import read_range
from .gguf_header import GGUFTensor
from .nvfp4 import MUL, load_nvfp4

NVFP4 = GGMLQuantizationType.__members__.get("NVFP4")
"""None where the gguf package is too old to know it."""
_BLOCK_BYTES, _SCALES = 36, 4
_MEANS_ZERO = 0x7F
_DAMAGED = "the file is damaged; fetch it again"


def take_scales(tensors: Mapping[str, GGUFTensor]) -> tuple[dict[str, GGUFTensor], dict[str, GGUFTensor]]:
    """The tensors of a file without the numbers that belong to those in NVFP4, and these numbers by the names of their tensors."""
    weights = [name for name, tensor in tensors.items() if tensor.type is NVFP4 and name.endswith(".weight")]
    modules = {name.removesuffix("weight"): name for name in weights}
    scales = {name: tensors[f"{module}scale"] for module, name in modules.items() if f"{module}scale" in tensors}
    taken = {module + suffix for module in modules for suffix in ("scale", "input_scale")}
    return {name: tensor for name, tensor in tensors.items() if name not in taken}, scales


def load_gguf_nvfp4(name: str, raw: torch.Tensor, scale: GGUFTensor | None) -> LoadedTensor:
    """uint8 [N, bytes of a row] of the tensor `name` -> nvfp4_mul. Raises CheckpointError for scales that cannot be."""
    scales, halves = raw.unflatten(1, (-1, _BLOCK_BYTES)).split((_SCALES, _BLOCK_BYTES - _SCALES), dim=2)
    if bool((scales > _MEANS_ZERO).any()):
        raise CheckpointError(f"tensor {name} has scales below zero", hint=_DAMAGED)
    eights = halves.unflatten(2, (_SCALES, 8))
    codes = torch.cat((eights & 0x0F, eights >> 4), dim=3).flatten(1)
    try:
        return load_nvfp4(MUL, codes, torch.where(scales == _MEANS_ZERO, 0, scales).flatten(1), _number(scale))
    except ValueError as error:
        raise CheckpointError(f"tensor {name}: {error}", hint=_DAMAGED) from error


def _number(scale: GGUFTensor | None) -> torch.Tensor:
    if scale is None:
        return torch.ones(1)
    if scale.type is not GGMLQuantizationType.F32 or scale.shape != (1,):
        raise ValueError(f"its scale is {scale.type.name} {list(scale.shape)}, not one number in F32")
    return read_range(scale.file, scale.offset, scale.size).view(torch.float32)
