"""Checkpoints of any kind behind one interface; `open.py` finds the right kind."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError, UnsupportedModelError
from ..kernels.linear.packed import ORDER
from .decoder import Decoder
from .names import Located
from .pooled import Pooled
from .spec import ModelSpec
from .stored_values import values_of

Format = str
"""How values are stored: f32, f16 or bf16, a block format (kernels/linear/blocks.py) or one of FP8 (kernels/nvidia/packed_rows.py).

The order of a matrix's columns is a parameter, too, in the format `order:NAME` (kernels/linear/packed.py).
"""


NUMBERS = ("f32", "f16", "bf16")
"""Formats without blocks and scales."""


@dataclass(frozen=True, kw_only=True)
class ParameterInfo:
    """shape: the logical shape, [N, K] for a matrix. format: how the values are read.

    widened_from: what the checkpoint calls the type that it stores them in, where nothing here reads that as it is.
    """

    shape: tuple[int, ...]
    format: Format
    widened_from: str = ""

    @classmethod
    def of(cls, located: Located, shape: tuple[int, ...], stored: Format, widened_from: str) -> Self:
        """stored, widened_from: of its tensors. What is to be computed or turned is numbers then, whatever it was."""
        if located.turned and stored not in NUMBERS:
            stored, widened_from = "f32", widened_from or stored.upper()
        return cls(shape=shape, format="f32" if located.is_computed else stored, widened_from=widened_from)

    @property
    def is_order(self) -> bool:
        """Whether it is the order of a matrix's columns, which no model has of its own."""
        return self.format.startswith(f"{ORDER}:")


@dataclass(frozen=True, kw_only=True)
class LoadedTensor:
    """One parameter in memory.

    data: for "f32", "f16" and "bf16" a tensor of that dtype and of the logical shape; for a quantized format
    the blocks of every row, uint8 [N, bytes] (kernels/linear/stored_blocks.py); for FP8 its rows with their
    scales, uint8 [N, row_bytes] (kernels/nvidia/fp8.py); for an order int32 [K].
    order: of a matrix in act-order that of its columns, int32 [K]: column i of the blocks is column order[i] of the parameter.
    """

    format: Format
    data: torch.Tensor
    order: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the checkpoint declares: token ids that start a text and that end one, and how tokens are chosen (sampling_defaults.py)."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)


class Checkpoint(ABC):
    """A checkpoint whose structure was checked when it was opened; tensors are read one at a time.

    name: what to call the model. parameters: everything `Decoder(spec)` needs but its constants, by its names, and orders of columns.
    has_tokenizer: whether there is one to write. pooled: what is made of a text in place of tokens; None of a model that generates.
    """

    name: str
    spec: ModelSpec
    generation: Generation
    parameters: Mapping[str, ParameterInfo]
    has_tokenizer: bool = True
    pooled: Pooled | None = None
    _located: Mapping[str, Located]

    def read(self, parameter: str) -> LoadedTensor:
        """Reads one parameter from disk; the caller owns the memory. Raises CheckpointError if the file changed or cannot be read."""
        located = self._located[parameter]
        return taken(located, [self._load(tensor) for tensor in located.tensors])

    def tensors_of(self, parameter: str) -> tuple[str, ...]:
        """The checkpoint's own names of the tensors that a parameter lies in."""
        return tuple(self._located[parameter].tensors)

    @abstractmethod
    def _load(self, tensor: str) -> LoadedTensor:
        """A tensor of the checkpoint by its own name. Raises as `read` does."""

    @abstractmethod
    def write_tokenizer(self, directory: Path) -> None:
        """Writes tokenizer.json, text.json and, if the model has one, chat_template.jinja into an existing directory.

        Raises CheckpointError for a tokenizer that is missing or damaged, UnsupportedModelError for one of an unknown kind.
        """


def taken(located: Located, loaded: Sequence[LoadedTensor]) -> LoadedTensor:
    """A parameter out of the tensors that it lies in. Rows are whole, so quantized blocks stay as they are.

    Raises UnsupportedModelError where blocks would have to be taken apart.
    """
    if located.turned:
        loaded = [
            each if each.format in NUMBERS else LoadedTensor(format="f32", data=values_of(each.format, each.data, each.order))
            for each in loaded
        ]
    format, order = loaded[0].format, loaded[0].order
    is_vector = located.split and len(located.shape) == 2
    moved = located.transposed or located.columns is not None or located.is_computed or is_vector
    if (format not in NUMBERS and moved) or (order is not None and len(loaded) > 1):
        raise UnsupportedModelError(
            f"tensor {located.tensors[0]} is stored in {format}, and this model holds it in another order",
            hint="give the unquantized checkpoint, and quantize that with `engine build --quantize`",
        )
    if others := [name for name, each in zip(located.tensors, loaded, strict=True) if each.format != format]:
        raise UnsupportedModelError(
            f"tensor {located.tensors[0]} is stored in {format}, and {others[0]} is not",
            hint="experts of one layer must be stored alike; give the unquantized checkpoint",
        )
    data = loaded[0].data
    if located.stacked or located.joined:
        data = (torch.stack if located.stacked else torch.cat)([each.data for each in loaded])
    if located.transposed:
        data = data.transpose(-2, -1).contiguous()
    if located.split and data.dim() == len(located.shape):
        data = data.flatten(0, 1)
    if located.rows is not None:
        data = data[located.rows]
    if located.turned:
        data = data.unflatten(0, (located.turned, -1)).transpose(1, 2).flatten(0, 1)
    if located.columns is not None:
        data = data[:, located.columns]
    if located.is_computed:
        format, data = "f32", data.to(torch.float32) * located.times + located.plus
    return LoadedTensor(format=format, data=data, order=order)


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of `Decoder(spec)`, its constants excluded. Allocates nothing."""
    with torch.device("meta"), _WithoutInitialization():
        decoder = Decoder(spec)
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
