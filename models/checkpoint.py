"""Checkpoints of any kind behind one interface, and the way from what a person types to the right kind."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, UsageError
from .config import ModelConfig
from .decoder import Decoder

Format = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "fp8_channel", "fp8_block", "fp8_tensor"]


@dataclass(frozen=True, kw_only=True)
class ParameterInfo:
    """shape: the logical shape, [N, K] for a matrix. format: how the checkpoint stores the values."""

    shape: tuple[int, ...]
    format: Format


@dataclass(frozen=True, kw_only=True)
class LoadedTensor:
    """One parameter in memory.

    data: for "f32", "f16" and "bf16" a tensor of that dtype and of the logical shape; for a quantized format
    the GGUF blocks of every row as they are, uint8 [N, K / 32 * bytes per block]; for FP8 its rows with their
    scales, uint8 [N, row_bytes] (kernels/nvidia/fp8.py).
    """

    format: Format
    data: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Token ids that start a text and that end one, as the checkpoint declares them."""

    bos_id: int | None
    eos_ids: tuple[int, ...]


class Checkpoint(ABC):
    """A checkpoint whose structure was checked when it was opened; tensors are read one at a time.

    name: what to call the model. parameters: everything `Decoder(config)` needs but its constants, by its names.
    has_tokenizer: whether there is one to write.
    """

    name: str
    config: ModelConfig
    generation: Generation
    parameters: Mapping[str, ParameterInfo]
    has_tokenizer: bool = True

    @abstractmethod
    def read(self, parameter: str) -> LoadedTensor:
        """Reads one parameter from disk; the caller owns the memory. Raises CheckpointError if the file changed or cannot be read.

        A linear NAME whose weight is stored as "fp8_tensor" also has NAME.input_scale, the static scale of its activations: "f32" [1].
        """

    @abstractmethod
    def write_tokenizer(self, directory: Path) -> None:
        """Writes tokenizer.json, text.json and, if the model has one, chat_template.jinja into an existing directory.

        Raises CheckpointError for a tokenizer that is missing or damaged, UnsupportedModelError for one of an unknown kind.
        """


def open_checkpoint(model: str, *, weights: bool = True) -> Checkpoint:
    """Opens a Hugging Face directory, a GGUF file or a hub id, and checks all of its structure.

    weights: False where none will be read; then a directory may have neither them nor a tokenizer.

    Raises UsageError if `model` is none of them, CheckpointError for files that are missing, damaged or
    contradictory, UnsupportedModelError for a model or a setting that this version does not implement.
    """
    # Imported here because it implements `Checkpoint`, as does GGUFCheckpoint.
    from .safetensors_checkpoint import SafetensorsCheckpoint

    path = Path(model).expanduser()
    if path.is_dir():
        return SafetensorsCheckpoint(path, name=path.resolve().name, weights=weights)
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise UsageError(f"{model} is one file of a checkpoint", hint=f"give its directory: {path.parent}")
        from .gguf_checkpoint import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if _HUB_ID.fullmatch(model):
        from .hub import download

        return SafetensorsCheckpoint(download(model), name=model)
    raise UsageError(
        f"{model!r} is neither a directory, nor a file, nor the name of a model on the Hugging Face hub",
        hint="a model is a directory with config.json and safetensors, a .gguf file, or an organization/name",
    )


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of `Decoder(config)`, its constants excluded. Allocates nothing."""
    with torch.device("meta"), _WithoutInitialization():
        decoder = Decoder(config)
    return {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}


class _WithoutInitialization(TorchFunctionMode):
    """Leaves new parameters as they are. On the device "meta", drawing their values would import Dynamo, for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def check_shape(tensor_name: str, actual: tuple[int, ...], expected: tuple[int, ...], source: str) -> None:
    """Raises CheckpointError if a tensor has another shape than the model's configuration implies."""
    if actual != expected:
        raise CheckpointError(
            f"{source}: tensor {tensor_name} has shape {list(actual)}; the configuration implies {list(expected)}",
            hint="the configuration belongs to another model",
        )


# Two parts, so that a mistyped path of one part or of three is not looked up on the network.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
