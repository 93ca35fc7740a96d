"""FP8 checkpoints as they are published: float8_e4m3fn matrices, each with its scales in a tensor of its own.

- compressed-tensors, `float-quantized`: NAME.weight_scale, one number per tensor or per output
  channel, or per block of 128 x 128.
- Hugging Face's and DeepSeek's `fp8`: NAME.weight_scale_inv, one per block of 128 x 128; without
  blocks NAME.weight_scale or NAME.weight_scale_inv, one per tensor.

In all of them value = scale * number. Activations are scaled by what they are when they come
(fp8_channel, fp8_block), or where the checkpoint says that its scales of activations are static, by
those (fp8_tensor, see fp8_input_scales.py).
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from ...errors import CheckpointError
from ...kernels.nvidia.fp8 import pack_fp8, scales_of_rows
from ...kernels.nvidia.packed_rows import ALIGNMENT, FP8_GROUP, FP8_STATIC
from ..checkpoint import Format, LoadedTensor
from .dense import DenseStorage
from .file_ranges import read_range
from .fp8_input_scales import INPUT_SCALES, SCALE_DTYPES, read_input_scale
from .safetensors_header import StoredTensor

FP8Format = Literal["fp8_channel", "fp8_block", "fp8_tensor"]
DTYPE = "F8_E4M3"
_BLOCK = [FP8_GROUP, FP8_GROUP]
_SCALE_SUFFIXES = ("_scale", "_scale_inv")
_NOT_PARAMETERS = (*INPUT_SCALES, ".output_scale", ".k_scale", ".v_scale")


def fp8_format(config: Mapping[str, Any]) -> FP8Format | None:
    """The format of a checkpoint's FP8 matrices by its config.json; None if it is not one of the published kinds."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(settings, dict):
        return None
    if settings.get("quant_method") == "fp8":
        return _of_scheme(settings.get("weight_block_size"), settings.get("activation_scheme", "dynamic"))
    groups = settings.get("config_groups")
    if settings.get("quant_method") != "compressed-tensors" or not isinstance(groups, dict):
        return None
    formats = {_of_group(group) if isinstance(group, dict) else None for group in groups.values()}
    return formats.pop() if len(formats) == 1 else None


def _of_scheme(block: Any, activations: Any) -> FP8Format | None:
    match block, activations:
        case list(), "dynamic":
            return "fp8_block" if block == _BLOCK else None
        case None, "dynamic":
            return "fp8_channel"
        case None, "static":
            return "fp8_tensor"
    return None


def _of_group(group: Mapping[str, Any]) -> FP8Format | None:
    format, activations = _of_weights(group.get("weights")), group.get("input_activations")
    if not isinstance(activations, dict) or activations.get("dynamic"):
        return format
    kind = tuple(activations.get(key) for key in ("type", "num_bits", "strategy"))
    return "fp8_tensor" if (format, kind) == ("fp8_channel", ("float", 8, "tensor")) else None


def _of_weights(weights: Any) -> FP8Format | None:
    if not isinstance(weights, dict) or (weights.get("type"), weights.get("num_bits")) != ("float", 8):
        return None
    match weights.get("strategy"):
        case "tensor" | "channel":
            return "fp8_channel"
        case "block" if weights.get("block_structure") == _BLOCK:
            return "fp8_block"
    return None


class FP8Storage(DenseStorage):
    """float8_e4m3fn matrices, and what is not quantized as it is."""

    def __init__(self, fp8: FP8Format, tensors: Mapping[str, StoredTensor]) -> None:
        parameters, self._scales = _take_scales(tensors)
        super().__init__(parameters)
        self._fp8, self._all = fp8, tensors

    def format(self, name: str) -> Format:
        if name not in self._scales:
            return super().format(name)
        _check(name, self.tensors[name], self._scales[name], self._fp8)
        return self._fp8

    def load(self, name: str) -> LoadedTensor:
        if name not in self._scales:
            return super().load(name)
        return LoadedTensor(format=self._fp8, data=_read(self.tensors[name], self._scales[name], self._fp8))

    def scale_of_input(self, name: str) -> torch.Tensor | None:
        return read_input_scale(self._all, name) if self._fp8 == FP8_STATIC and name in self._scales else None


def _take_scales(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
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
    return {n: tensor for n, tensor in tensors.items() if n not in taken and not n.endswith(_NOT_PARAMETERS)}, scales


def _check(name: str, weight: StoredTensor, scale: StoredTensor, format: FP8Format) -> None:
    """Raises CheckpointError for a matrix or scales of shapes that the format does not have."""
    rows, columns = weight.shape
    multiple = FP8_GROUP if format == "fp8_block" else ALIGNMENT
    shapes = [(-(-rows // FP8_GROUP), columns // FP8_GROUP)] if format == "fp8_block" else [(), (1,), (1, 1), (rows,), (rows, 1)]
    if columns % multiple or scale.shape not in shapes or scale.dtype not in SCALE_DTYPES:
        raise CheckpointError(
            f"the FP8 tensor {name} {list(weight.shape)} has scales {scale.dtype} {list(scale.shape)}, which do not fit {format}",
            hint=f"rows of a multiple of {multiple} are supported; or give the unquantized checkpoint",
        )


def _read(weight: StoredTensor, scale: StoredTensor, format: FP8Format) -> torch.Tensor:
    """The matrix with its scales as FP8 rows, uint8 [N, row_bytes] (kernels/nvidia/fp8.py). Every number is kept.

    Raises CheckpointError if the file changed or cannot be read.
    """
    rows, columns = weight.shape
    numbers = read_range(weight.path, weight.offset, weight.size).view(torch.float8_e4m3fn).view(rows, columns)
    scales = read_range(scale.path, scale.offset, scale.size).view(SCALE_DTYPES[scale.dtype]).float()
    if format == "fp8_block":
        return pack_fp8(format, numbers, scales_of_rows(scales.view(-1, columns // FP8_GROUP), rows))
    return pack_fp8(format, numbers, scales.reshape(-1, 1).expand(rows, 1))
