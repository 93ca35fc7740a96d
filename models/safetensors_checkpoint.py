"""A directory as Hugging Face lays it out: config.json, model.safetensors or its shards, tokenizer files."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import CheckpointError, UnsupportedModelError
from ..kernels.nvidia.packed_rows import FP8_STATIC, input_scale_name
from .checkpoint import Checkpoint, Format, Generation, LoadedTensor, ParameterInfo, check_shape, parameter_shapes
from .config import ModelConfig
from .file_ranges import read_range
from .fp8_input_scales import read_input_scales
from .fp8_tensors import check_fp8, fp8_format, read_fp8, take_scales
from .hf_config import config_from_hf
from .json_file import read_json
from .names import HF_NAMES, match_names, parameter_name
from .safetensors_header import StoredTensor, read_header
from .tokenizer_hf import tokenizer_from_hf

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FORMATS: dict[str, tuple[Format, torch.dtype]] = {
    "F32": ("f32", torch.float32),
    "F16": ("f16", torch.float16),
    "BF16": ("bf16", torch.bfloat16),
}


class SafetensorsCheckpoint(Checkpoint):
    """Opens and checks a directory; see `Checkpoint`."""

    def __init__(self, directory: Path, *, name: str, weights: bool = True) -> None:
        self.name = name
        values = read_json(directory / "config.json", hint=_what_to_give(directory))
        fp8 = fp8_format(values)
        config = config_from_hf(values if fp8 is None else _without_quantization(values))
        if not weights and not _has_weights(directory):
            self._describe_only(config, values)
            return
        stored = _read_headers(directory)
        tensors, self._scales = take_scales(stored) if fp8 is not None else (stored, {})
        self.config = _resolve_tying(config, tensors)
        shapes = parameter_shapes(self.config)
        matched = match_names(HF_NAMES, tensors, shapes.keys(), str(directory))
        self._tensors = {parameter: tensors[tensor_name] for parameter, tensor_name in matched.items()}
        for parameter, tensor_name in matched.items():
            check_shape(tensor_name, tensors[tensor_name].shape, shapes[parameter], tensors[tensor_name].path.name)
            if fp8 is not None and tensor_name in self._scales:
                check_fp8(tensor_name, tensors[tensor_name], self._scales[tensor_name], fp8)
            elif tensors[tensor_name].dtype not in _FORMATS:
                raise UnsupportedModelError(
                    f"tensor {tensor_name} is stored as {tensors[tensor_name].dtype}, which is not supported",
                    hint="give a checkpoint in float32, float16 or bfloat16",
                )
        self._names, self._fp8 = matched, fp8
        self._input_scales = self._read_input_scales(stored) if fp8 == FP8_STATIC else {}
        self.parameters = {name: ParameterInfo(shape=shape, format=self._format(name)) for name, shape in shapes.items()}
        self._tokenizer = tokenizer_from_hf(directory, values)
        self.generation = Generation(bos_id=self._tokenizer.bos_id, eos_ids=self._tokenizer.eos_ids)

    def _describe_only(self, config: ModelConfig, values: Mapping[str, Any]) -> None:
        """What the configuration alone says: every parameter in the dtype that it names."""
        self.config = dataclasses.replace(config, tie_embeddings=bool(values.get("tie_word_embeddings", config.tie_embeddings)))
        dtype = str(values.get("dtype") or values.get("torch_dtype") or "bfloat16")
        format = {"float32": "f32", "float16": "f16"}.get(dtype, "bf16")
        self.parameters = {
            name: ParameterInfo(shape=shape, format=cast(Format, format)) for name, shape in parameter_shapes(self.config).items()
        }
        self._tensors = {}
        self.has_tokenizer = False
        self.generation = Generation(bos_id=None, eos_ids=())

    def _read_input_scales(self, stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
        """By our names."""
        found = read_input_scales(stored, self._scales)
        return {input_scale_name(parameter): found[name] for parameter, name in self._names.items() if name in found}

    def _format(self, parameter: str) -> Format:
        if self._fp8 is not None and self._names[parameter] in self._scales:
            return self._fp8
        return _FORMATS[self._tensors[parameter].dtype][0]

    def read(self, parameter: str) -> LoadedTensor:
        if (input_scale := self._input_scales.get(parameter)) is not None:
            return LoadedTensor(format="f32", data=input_scale.clone())
        stored = self._tensors[parameter]
        if self._fp8 is not None and (scale := self._scales.get(self._names[parameter])) is not None:
            return LoadedTensor(format=self._fp8, data=read_fp8(stored, scale, self._fp8))
        format, dtype = _FORMATS[stored.dtype]
        return LoadedTensor(format=format, data=read_range(stored.path, stored.offset, stored.size).view(dtype).view(stored.shape))

    def write_tokenizer(self, directory: Path) -> None:
        self._tokenizer.write(directory)


def _without_quantization(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("quantization_config", "compression_config")}


def _has_weights(directory: Path) -> bool:
    return (directory / WEIGHTS).exists() or (directory / INDEX).exists()


def _read_headers(directory: Path) -> dict[str, StoredTensor]:
    if (directory / WEIGHTS).exists():
        return read_header(directory / WEIGHTS)
    if not (directory / INDEX).exists():
        raise _no_weights(directory)
    shard_of = read_json(directory / INDEX, hint="fetch the checkpoint again").get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) and Path(shard).name == shard for shard in shard_of.values()):
        raise CheckpointError(f"{directory / INDEX} has no usable weight_map", hint="the file is damaged; fetch it again")
    shards = {}
    for shard in sorted(set(shard_of.values())):
        if not (directory / shard).exists():
            raise CheckpointError(f"{directory} has no {shard}, which {INDEX} names", hint="a shard is missing; fetch the checkpoint again")
        shards[shard] = read_header(directory / shard)
    return _merge(shard_of, shards)


def _merge(shard_of: Mapping[str, str], shards: Mapping[str, Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """All tensors of all shards; those that the index places must be where it places them."""
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    for name, shard in shard_of.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{INDEX} places tensor {name} in {shard}, which does not have it", hint="index and shards are of different checkpoints"
            )
        tensors[name] = shards[shard][name]
    return tensors


def _no_weights(directory: Path) -> CheckpointError:
    return CheckpointError(f"{directory} has neither {WEIGHTS} nor {INDEX}", hint=_what_to_give(directory))


def _what_to_give(directory: Path) -> str:
    """What a person may have meant by a directory that is not a checkpoint, by what lies in it."""
    suffixes = {path.suffix: path for path in sorted(directory.iterdir(), reverse=True)}
    if ".gguf" in suffixes:
        return f"give the file itself: {suffixes['.gguf']}"
    if suffixes.keys() & {".bin", ".pt", ".pth"}:
        return "pickled weights can run code and are never read; save the model as safetensors (`model.save_pretrained(directory)`)"
    return f"give a directory with config.json and {WEIGHTS}, or a .gguf file"


def _resolve_tying(config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> ModelConfig:
    """A tied model may still carry a head; one that differs from the embedding is what the model was saved with, and counts."""
    if not config.tie_embeddings:
        return config
    stored = {parameter_name(HF_NAMES, name): tensor for name, tensor in tensors.items()}
    embed, head = stored.get("embed.weight"), stored.get("head.weight")
    if embed is None or head is None or _same_values(embed, head):
        return config
    return dataclasses.replace(config, tie_embeddings=False)


def _same_values(left: StoredTensor, right: StoredTensor, chunk: int = 1 << 26) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return all(
        torch.equal(
            read_range(left.path, left.offset + start, min(chunk, left.size - start)),
            read_range(right.path, right.offset + start, min(chunk, left.size - start)),
        )
        for start in range(0, left.size, chunk)
    )
