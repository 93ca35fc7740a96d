"""Published formats of weights in safetensors, behind one interface: plain numbers here, others beside it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from ...errors import UnsupportedModelError
from ..checkpoint import Format, LoadedTensor
from .file_ranges import read_range
from .safetensors_header import StoredTensor

_FORMATS: dict[str, tuple[Format, torch.dtype]] = {
    "F32": ("f32", torch.float32),
    "F16": ("f16", torch.float16),
    "BF16": ("bf16", torch.bfloat16),
}


class Storage(ABC):
    """How a checkpoint stores its tensors. tensors: those that are parameters or parts of them, by name."""

    tensors: Mapping[str, StoredTensor]

    @abstractmethod
    def format(self, name: str) -> Format:
        """How a tensor is stored. Raises UnsupportedModelError, or CheckpointError where it contradicts itself, if it cannot be read."""

    @abstractmethod
    def load(self, name: str) -> LoadedTensor:
        """Reads a tensor from disk. Raises CheckpointError if the file changed or cannot be read."""

    def widened_from(self, name: str) -> str:
        """What the checkpoint calls the type of a tensor that is read as float32 because nothing here reads it as it is."""
        return ""

    def order(self, name: str) -> torch.Tensor | None:
        """The order of a matrix's columns, int32 [K], as `LoadedTensor` has it; None if they lie as they are."""
        return None

    def scale_of_input(self, name: str) -> torch.Tensor | None:
        """The static scale [1] float32 of what a linear with that weight reads, if there is one."""
        return None


class DenseStorage(Storage):
    """float32, float16 or bfloat16."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self.tensors = tensors

    def format(self, name: str) -> Format:
        dtype = self.tensors[name].dtype
        if dtype not in _FORMATS:
            raise UnsupportedModelError(
                f"tensor {name} is stored as {dtype}, which is not supported", hint="give a checkpoint in float32, float16 or bfloat16"
            )
        return _FORMATS[dtype][0]

    def load(self, name: str) -> LoadedTensor:
        stored = self.tensors[name]
        format, dtype = _FORMATS[stored.dtype]
        return LoadedTensor(format=format, data=read_range(stored.path, stored.offset, stored.size).view(dtype).view(stored.shape))
