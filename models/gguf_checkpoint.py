"""A GGUF file as a checkpoint."""

import math
from collections.abc import Collection
from pathlib import Path

import gguf.quants
import torch
from gguf import GGMLQuantizationType

from ..errors import CheckpointError, UnsupportedModelError
from .architectures.architecture import GGUFSource
from .architectures.gguf import VECTORS
from .architectures.registry import spec_from_gguf
from .checkpoint import Checkpoint, Format, Generation, LoadedTensor, ParameterInfo, check_shape, parameter_shapes
from .names import locate
from .storage.file_ranges import read_range
from .storage.gguf_header import GGUFTensor, model_name, read_gguf
from .storage.gguf_nvfp4 import NVFP4, load_gguf_nvfp4, take_scales
from .storage.nvfp4 import MUL
from .tokenizers.gguf import tokenizer_from_gguf

_FLOATS: dict[GGMLQuantizationType, tuple[Format, torch.dtype]] = {
    GGMLQuantizationType.F32: ("f32", torch.float32),
    GGMLQuantizationType.F16: ("f16", torch.float16),
    GGMLQuantizationType.BF16: ("bf16", torch.bfloat16),
}
_BLOCKS: dict[GGMLQuantizationType, Format] = {
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_0: "q4_0",
    GGMLQuantizationType.Q4_1: "q4_1",
    GGMLQuantizationType.Q5_0: "q5_0",
    GGMLQuantizationType.Q5_1: "q5_1",
    GGMLQuantizationType.IQ4_NL: "iq4_nl",
    GGMLQuantizationType.MXFP4: "mxfp4",
    GGMLQuantizationType.Q2_K: "q2_k",
    GGMLQuantizationType.Q3_K: "q3_k",
    GGMLQuantizationType.Q4_K: "q4_k",
    GGMLQuantizationType.Q5_K: "q5_k",
    GGMLQuantizationType.Q6_K: "q6_k",
    GGMLQuantizationType.IQ4_XS: "iq4_xs",
    **({} if NVFP4 is None else {NVFP4: MUL}),
}
# Types without a kernel of ours: their values, exactly as ggml's own dequantization gives them, are loaded as float32.
_DEQUANTIZED = frozenset(
    GGMLQuantizationType[name]
    for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0")
    if name in GGMLQuantizationType.__members__
)


class GGUFCheckpoint(Checkpoint):
    """Opens and checks a file; see `Checkpoint`."""

    def __init__(self, path: Path, *, ignored: Collection[str] = ()) -> None:
        self.name = model_name(path)
        self._path = path
        header = read_gguf(path)
        self._tensors, self._scales = take_scales(header.tensors)
        vectors = {name: self._vector(name, self._tensors[name]) for name in VECTORS if name in self._tensors}
        found = GGUFSource(tensors=frozenset(self._tensors), vectors=vectors)
        self.spec, entry = spec_from_gguf(header.metadata, found, path.name, ignored=ignored)
        shapes = parameter_shapes(self.spec)
        self._values = entry.values(header.metadata, self.spec)
        stored = {name: tensor.shape for name, tensor in self._tensors.items()} | {n: tuple(v.shape) for n, v in self._values.items()}
        self._located = locate(entry.names_of(self.spec), stored, shapes, self.spec, path.name)
        for located in self._located.values():
            for name in located.tensors:
                check_shape(name, stored[name], located.shape, path.name)
        self.parameters = {name: self._info(name, shape) for name, shape in shapes.items()}
        self._tokenizer = tokenizer_from_gguf(header.metadata, path.name)
        self._tokenizer.check_size(self.spec.vocab_size, path.name)
        self.generation = Generation(bos_id=self._tokenizer.bos_id, eos_ids=self._tokenizer.eos_ids)

    def _info(self, parameter: str, shape: tuple[int, ...]) -> ParameterInfo:
        located = self._located[parameter]
        tensor = located.tensors[0]
        if tensor in self._values:
            return ParameterInfo(shape=shape, format="f32")
        type = self._tensors[tensor].type
        widened = type.name if type in _DEQUANTIZED else ""
        return ParameterInfo.of(located, shape, _format(tensor, self._tensors[tensor]), widened)

    def _load(self, tensor: str) -> LoadedTensor:
        if tensor in self._values:
            return LoadedTensor(format="f32", data=self._values[tensor].clone())
        stored = self._tensors[tensor]
        raw = read_range(stored.file, stored.offset, stored.size)
        if stored.type in _FLOATS:
            data = raw.view(_FLOATS[stored.type][1]).view(stored.shape)
        elif stored.type is NVFP4:
            return load_gguf_nvfp4(tensor, raw.view(_rows(stored), -1), self._scales.get(tensor))
        elif stored.type in _BLOCKS:
            data = raw.view(_rows(stored), -1)
        else:
            data = torch.from_numpy(gguf.quants.dequantize(raw.view(_rows(stored), -1).numpy(), stored.type))
        return LoadedTensor(format=_format(tensor, stored), data=data)

    def write_tokenizer(self, directory: Path) -> None:
        self._tokenizer.write(directory)

    def _vector(self, name: str, tensor: GGUFTensor) -> tuple[float, ...]:
        if tensor.type is not GGMLQuantizationType.F32:
            raise UnsupportedModelError(
                f"{self._path.name}: {name} is of type {tensor.type.name}; only F32 is supported", hint="convert the model to GGUF again"
            )
        values = read_range(tensor.file, tensor.offset, tensor.size).view(torch.float32)
        if not bool(torch.all(values > 0)):
            raise CheckpointError(f"{self._path.name}: {name} has values that are not positive", hint="the file is damaged; fetch it again")
        return tuple(values.tolist())


def _rows(tensor: GGUFTensor) -> int:
    """Those of all its matrices."""
    return math.prod(tensor.shape[:-1])


def _format(tensor_name: str, tensor: GGUFTensor) -> Format:
    if tensor.type in _FLOATS:
        return _FLOATS[tensor.type][0]
    if tensor.type in _BLOCKS and len(tensor.shape) >= 2:
        return _BLOCKS[tensor.type]
    if tensor.type in _DEQUANTIZED and len(tensor.shape) >= 2:
        return "f32"
    raise UnsupportedModelError(
        f"tensor {tensor_name} of shape {list(tensor.shape)} is of type {tensor.type.name}, which is not supported",
        hint=f"supported types of matrices: {', '.join(sorted(type.name for type in (*_FLOATS, *_BLOCKS, *_DEQUANTIZED)))}",
    )
