"""FP8 checkpoints as they are published: float8_e4m3fn matrices, each with its scales in a tensor of its own.

- compressed-tensors, `float-quantized`: NAME.weight_scale, one number per tensor or per output
  channel, or per block of 128 x 128.
- Hugging Face's and DeepSeek's `fp8`: NAME.weight_scale_inv, one per block of 128 x 128.

In all of them value = scale * number. Scales of activations (NAME.input_scale) are not read:
activations are scaled by what they are when they come, which is never less exact.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from ..errors import CheckpointError
from ..kernels.nvidia.fp8 import pack_fp8, scales_of_rows
from ..kernels.nvidia.packed_rows import ALIGNMENT, FP8_GROUP
from .file_ranges import read_range
from .safetensors_header import StoredTensor

FP8Format = Literal["fp8_channel", "fp8_block"]
DTYPE = "F8_E4M3"
_BLOCK = [FP8_GROUP, FP8_GROUP]
_SCALE_SUFFIXES = ("_scale", "_scale_inv")
_UNREAD = (".input_scale", ".output_scale", ".k_scale", ".v_scale")
_SCALE_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def fp8_format(config: Mapping[str, Any]) -> FP8Format | None:
    """The format of a checkpoint's FP8 matrices by its config.json; None if it is not one of the published kinds."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(settings, dict):
        return None
    if settings.get("quant_method") == "fp8":
        return "fp8_block" if settings.get("weight_block_size") == _BLOCK else None
    groups = settings.get("config_groups")
    if settings.get("quant_method") != "compressed-tensors" or not isinstance(groups, dict):
        return None
    formats = {_of_weights(group.get("weights")) if isinstance(group, dict) else None for group in groups.values()}
    return formats.pop() if len(formats) == 1 else None


def _of_weights(weights: Any) -> FP8Format | None:
    if not isinstance(weights, dict) or (weights.get("type"), weights.get("num_bits")) != ("float", 8):
        return None
    match weights.get("strategy"):
        case "tensor" | "channel":
            return "fp8_channel"
        case "block" if weights.get("block_structure") == _BLOCK:
            return "fp8_block"
    return None


def take_scales(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The tensors that are parameters, and the scales of those in FP8 by their matrix's name.

    Raises CheckpointError for an FP8 matrix without scales.
    """
    scales = {}
    for name, tensor in tensors.items():
        if tensor.dtype == DTYPE:
            found = [tensors[name + suffix] for suffix in _SCALE_SUFFIXES if name + suffix in tensors]
            if len(found) != 1:
                raise CheckpointError(
                    f"the FP8 tensor {name} has no scales ({' or '.join(name + suffix for suffix in _SCALE_SUFFIXES)})",
                    hint="the checkpoint is incomplete or of a kind that is not supported; give the unquantized one",
                )
            scales[name] = found[0]
    taken = {name + suffix for name in scales for suffix in _SCALE_SUFFIXES}
    return {n: tensor for n, tensor in tensors.items() if n not in taken and not n.endswith(_UNREAD)}, scales


def check_fp8(name: str, weight: StoredTensor, scale: StoredTensor, format: FP8Format) -> None:
    """Raises CheckpointError for a matrix or scales of shapes that the format does not have."""
    rows, columns = weight.shape
    multiple = ALIGNMENT if format == "fp8_channel" else FP8_GROUP
    counts = (1, rows) if format == "fp8_channel" else (-(-rows // FP8_GROUP) * -(-columns // FP8_GROUP),)
    count = 1
    for size in scale.shape:
        count *= size
    if columns % multiple or count not in counts or scale.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"the FP8 tensor {name} {list(weight.shape)} has scales {scale.dtype} {list(scale.shape)}, which do not fit {format}",
            hint=f"rows of a multiple of {multiple} are supported; or give the unquantized checkpoint",
        )


def read_fp8(weight: StoredTensor, scale: StoredTensor, format: FP8Format) -> torch.Tensor:
    """The matrix with its scales as FP8 rows, uint8 [N, row_bytes] (kernels/nvidia/fp8.py). Every number is kept.

    Raises CheckpointError if the file changed or cannot be read.
    """
    rows, columns = weight.shape
    numbers = read_range(weight.path, weight.offset, weight.size).view(torch.float8_e4m3fn).view(rows, columns)
    scales = read_range(scale.path, scale.offset, scale.size).view(_SCALE_DTYPES[scale.dtype]).float()
    if format == "fp8_channel":
        return pack_fp8(format, numbers, scales.reshape(-1, 1).expand(rows, 1))
    return pack_fp8(format, numbers, scales_of_rows(scales.view(-1, columns // FP8_GROUP), rows))
