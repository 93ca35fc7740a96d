"""A GGUF file as a checkpoint."""

from pathlib import Path

import gguf.quants
import torch
from gguf import GGMLQuantizationType

from ..errors import CheckpointError, UnsupportedModelError
from .checkpoint import Checkpoint, Format, Generation, LoadedTensor, ParameterInfo, check_shape, parameter_shapes
from .config import ModelConfig
from .file_ranges import read_range
from .gguf_config import config_from_gguf
from .gguf_header import GGUFTensor, read_gguf_header
from .names import GGUF_INTERLEAVED_ARCHITECTURES, GGUF_INTERLEAVED_PARAMETERS, GGUF_NAMES, match_names
from .tokenizer_gguf import tokenizer_from_gguf

_FLOATS: dict[GGMLQuantizationType, tuple[Format, torch.dtype]] = {
    GGMLQuantizationType.F32: ("f32", torch.float32),
    GGMLQuantizationType.F16: ("f16", torch.float16),
    GGMLQuantizationType.BF16: ("bf16", torch.bfloat16),
}
_BLOCKS: dict[GGMLQuantizationType, Format] = {
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_0: "q4_0",
    GGMLQuantizationType.Q4_1: "q4_1",
}
# Types without a kernel of ours: their values, exactly as ggml's own dequantization gives them, are loaded as float32.
_DEQUANTIZED = frozenset(
    GGMLQuantizationType[name] for name in ("Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
)
_ROPE_DIVISORS = "rope_freqs.weight"


class GGUFCheckpoint(Checkpoint):
    """Opens and checks a file; see `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path
        header = read_gguf_header(path)
        if header.metadata.get("split.count", 0) > 1:
            raise UnsupportedModelError(
                f"{path.name} is one part of {header.metadata['split.count']}", hint="merge the parts with `llama-gguf-split --merge`"
            )
        tensors = header.tensors
        divisors = self._divisors(tensors.get(_ROPE_DIVISORS))
        self.config = config_from_gguf(header.metadata, tensors.keys(), divisors, path.name)
        shapes = parameter_shapes(self.config)
        matched = match_names(GGUF_NAMES, tensors, shapes.keys(), path.name)
        self._tensors = {parameter: tensors[tensor_name] for parameter, tensor_name in matched.items()}
        for parameter, tensor_name in matched.items():
            check_shape(tensor_name, tensors[tensor_name].shape, shapes[parameter], path.name)
        self.parameters = {
            name: ParameterInfo(shape=shape, format=_format(matched[name], self._tensors[name])) for name, shape in shapes.items()
        }
        self._tokenizer = tokenizer_from_gguf(header.metadata, path.name)
        self.generation = Generation(bos_id=self._tokenizer.bos_id, eos_ids=self._tokenizer.eos_ids)

    def read(self, parameter: str) -> LoadedTensor:
        tensor = self._tensors[parameter]
        raw = read_range(self._path, tensor.offset, tensor.size)
        info = self.parameters[parameter]
        if tensor.type in _FLOATS:
            data = raw.view(_FLOATS[tensor.type][1]).view(tensor.shape)
        elif tensor.type in _BLOCKS:
            data = raw.view(tensor.shape[0], -1)
        else:
            data = torch.from_numpy(gguf.quants.dequantize(raw.view(tensor.shape[0], -1).numpy(), tensor.type))
        return LoadedTensor(format=info.format, data=_uninterleave(parameter, data, self.config))

    def write_tokenizer(self, directory: Path) -> None:
        self._tokenizer.write(directory)

    def _divisors(self, tensor: GGUFTensor | None) -> tuple[float, ...]:
        if tensor is None:
            return ()
        if tensor.type is not GGMLQuantizationType.F32:
            raise UnsupportedModelError(f"{self._path.name}: {_ROPE_DIVISORS} is of type {tensor.type.name}; only F32 is supported")
        values = read_range(self._path, tensor.offset, tensor.size).view(torch.float32)
        if not bool(torch.all(values > 0)):
            raise CheckpointError(f"{self._path.name}: {_ROPE_DIVISORS} has values that are not positive")
        return tuple(values.tolist())


def _format(tensor_name: str, tensor: GGUFTensor) -> Format:
    if tensor.type in _FLOATS:
        return _FLOATS[tensor.type][0]
    if tensor.type in _BLOCKS and len(tensor.shape) == 2:
        return _BLOCKS[tensor.type]
    if tensor.type in _DEQUANTIZED and len(tensor.shape) == 2:
        return "f32"
    raise UnsupportedModelError(
        f"tensor {tensor_name} of shape {list(tensor.shape)} is of type {tensor.type.name}, which is not supported",
        hint=f"supported types of matrices: {', '.join(sorted(type.name for type in (*_FLOATS, *_BLOCKS, *_DEQUANTIZED)))}",
    )


def _uninterleave(parameter: str, data: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Brings the rows of q and k into the order that `Decoder` rotates; rows are whole, so blocks stay as they are."""
    match = GGUF_INTERLEAVED_PARAMETERS.fullmatch(parameter)
    if match is None or config.architecture not in GGUF_INTERLEAVED_ARCHITECTURES:
        return data
    heads = config.num_heads if match["which"] == "q" else config.num_kv_heads
    return data.view(heads, config.head_dim // 2, 2, -1).transpose(1, 2).reshape(data.shape)
