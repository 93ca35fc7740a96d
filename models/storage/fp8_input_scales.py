"""Static scales of activations in FP8 checkpoints: one number for all that a linear reads, measured when the checkpoint was made.

- compressed-tensors' and most others' name: NAME.input_scale
- that of transformers: NAME.activation_scale

number = activation / scale, rounded to float8_e4m3fn (kernels/nvidia/fp8.py says exactly how).
"""

from collections.abc import Mapping

import torch

from ...errors import CheckpointError
from .file_ranges import read_range
from .safetensors_header import StoredTensor

INPUT_SCALES = (".input_scale", ".activation_scale")
SCALE_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (1, 1))
_SMALLEST = torch.finfo(torch.float32).tiny
"""Smaller numbers have no reciprocal in float32."""


def read_input_scale(tensors: Mapping[str, StoredTensor], weight: str) -> torch.Tensor:
    """The scale of what a linear reads, float32 [1], by the name of its weight.

    tensors: all of the checkpoint. Raises CheckpointError for a scale that is missing, is not one number, or is not finite and positive.
    """
    return _read(_find(tensors, weight))


def _find(tensors: Mapping[str, StoredTensor], weight: str) -> tuple[str, StoredTensor]:
    names = [weight.removesuffix(".weight") + suffix for suffix in INPUT_SCALES]
    found = [name for name in names if name in tensors]
    if len(found) != 1:
        raise CheckpointError(
            f"config.json says that activations have static scales, but {weight} has {len(found)} of them ({' or '.join(names)})",
            hint="the checkpoint is incomplete; fetch it again, or give one with dynamic scales or the unquantized one",
        )
    return found[0], tensors[found[0]]


def _read(named: tuple[str, StoredTensor]) -> torch.Tensor:
    name, stored = named
    if stored.dtype not in SCALE_DTYPES or stored.shape not in _SHAPES:
        raise CheckpointError(
            f"the scale of activations {name} is {stored.dtype} {list(stored.shape)}, not one number for the whole tensor",
            hint="of activations with static scales only the strategy `tensor` is supported; give a checkpoint with dynamic scales",
        )
    scale = read_range(stored.path, stored.offset, stored.size).view(SCALE_DTYPES[stored.dtype]).float()
    value = float(scale)
    if not _SMALLEST <= value < torch.inf:
        raise CheckpointError(
            f"the scale of activations {name} is {value:g}; it must be a positive, finite number",
            hint="the file is damaged, or calibration went wrong; fetch it again, or give a checkpoint with dynamic scales",
        )
    return scale
