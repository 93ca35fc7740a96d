"""A directory as Hugging Face lays it out: config.json, model.safetensors or its shards, tokenizer files."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..kernels.linear.packed import ORDER, order_name
from ..kernels.nvidia.packed_rows import input_scale_name
from .architectures.registry import spec_from_hf
from .checkpoint import Checkpoint, Generation, LoadedTensor, ParameterInfo, check_shape, parameter_shapes
from .names import NameTable, locate, tensor_of
from .pooled import Pooled, read_pooled
from .sampling_defaults import sampling_defaults
from .spec import ModelSpec
from .storage.dense import DenseStorage, Storage
from .storage.file_ranges import read_range
from .storage.json_file import read_json
from .storage.modelopt import quantization_settings
from .storage.safetensors_header import StoredTensor, read_header
from .storage.schemes import KEYS, opener_of
from .tokenizers.hf import tokenizer_from_hf

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class HFCheckpoint(Checkpoint):
    """Opens and checks a directory; see `Checkpoint`."""

    def __init__(self, directory: Path, *, name: str, weights: bool = True, ignored: Collection[str] = ()) -> None:
        self.name = name
        values = read_json(directory / "config.json", hint=_what_to_give(directory))
        values |= quantization_settings(directory, values)
        opener = opener_of(values)
        pooled = read_pooled(directory, values)
        spec, entry = spec_from_hf(values if opener is None else _without_quantization(values), ignored=ignored, pooled=pooled)
        self.pooled = None if spec.pooling is None else pooled or Pooled(task="embed")
        if not weights and not _has_weights(directory):
            self._describe_only(spec, values)
            return
        stored = entry.own_tensors(_read_headers(directory))
        stored |= {} if pooled is None else _dense_tensors(pooled)
        self._storage: Storage = (opener or DenseStorage)(stored)
        tensors = self._storage.tensors
        self.spec = _resolve_tying(entry.fitting(spec, tensors), entry.names_of(spec), tensors)
        shapes = parameter_shapes(self.spec)
        self._located = locate(entry.names_of(self.spec), tensors, shapes, self.spec, str(directory))
        for located in self._located.values():
            for name in located.tensors:
                check_shape(name, tensors[name].shape, located.shape, tensors[name].path.name)
        self.parameters: dict[str, ParameterInfo] = {name: self._info(name, shape) for name, shape in shapes.items()}
        self._tokenizer = tokenizer_from_hf(directory, values)
        self._tokenizer.check_size(self.spec.vocab_size, str(directory))
        self.generation = Generation(bos_id=self._tokenizer.bos_id, eos_ids=self._tokenizer.eos_ids, sampling=sampling_defaults(directory))
        self._input_scales = self._read_input_scales()
        self._orders = {name: order for name, info in self.parameters.items() if (order := self._order(name, info)) is not None}
        self.parameters |= self._order_infos()

    def _describe_only(self, spec: ModelSpec, values: Mapping[str, Any]) -> None:
        """What the configuration alone says: every parameter in the dtype that it names."""
        self.spec = spec
        dtype = str(values.get("dtype") or values.get("torch_dtype") or "bfloat16")
        format = {"float32": "f32", "float16": "f16"}.get(dtype, "bf16")
        self.parameters = {name: ParameterInfo(shape=shape, format=format) for name, shape in parameter_shapes(spec).items()}
        self._located = {}
        self.has_tokenizer = False
        self.generation = Generation(bos_id=None, eos_ids=())

    def _read_input_scales(self) -> dict[str, torch.Tensor]:
        """By our names."""
        scales = {name: self._storage.scale_of_input(located.tensors[0]) for name, located in self._located.items()}
        return {input_scale_name(name): scale for name, scale in scales.items() if scale is not None}

    def _order(self, parameter: str, info: ParameterInfo) -> torch.Tensor | None:
        return self._storage.order(self._located[parameter].tensors[0]) if len(info.shape) == 2 else None

    def _order_infos(self) -> dict[str, ParameterInfo]:
        """Siblings with equal orders have that of the first, so that their activations are gathered once."""
        first: dict[tuple[str, bytes], str] = {}
        infos = {}
        for name, order in self._orders.items():
            parent, _, own = name.removesuffix(".weight").rpartition(".")
            shared = first.setdefault((parent, order.numpy().tobytes()), own)
            infos[order_name(name)] = ParameterInfo(shape=tuple(order.shape), format=f"{ORDER}:{shared}")
        return infos

    def _info(self, parameter: str, shape: tuple[int, ...]) -> ParameterInfo:
        located = self._located[parameter]
        stored, widened_from = self._storage.format(located.tensors[0]), self._storage.widened_from(located.tensors[0])
        return ParameterInfo.of(located, shape, stored, widened_from)

    def read(self, parameter: str) -> LoadedTensor:
        """As `Checkpoint.read`. A linear NAME whose weight is stored as "fp8_tensor" also has NAME.input_scale, the static scale of its
        activations: "f32" [1]. One whose weight is in act-order also has NAME.order, int32 [K]."""
        if (input_scale := self._input_scales.get(parameter)) is not None:
            return LoadedTensor(format="f32", data=input_scale.clone())
        if self.parameters[parameter].is_order:
            return LoadedTensor(format=ORDER, data=self._orders[parameter.removesuffix(ORDER) + "weight"].clone())
        return super().read(parameter)

    def tensors_of(self, parameter: str) -> tuple[str, ...]:
        """As `Checkpoint.tensors_of`; those of an order are its matrix's."""
        return super().tensors_of(f"{parameter.removesuffix(ORDER)}weight" if self.parameters[parameter].is_order else parameter)

    def _load(self, tensor: str) -> LoadedTensor:
        return self._storage.load(tensor)

    def write_tokenizer(self, directory: Path) -> None:
        self._tokenizer.write(directory)


def _without_quantization(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in KEYS}


def _dense_tensors(pooled: Pooled) -> dict[str, StoredTensor]:
    """Those of the layers behind pooling, by our names."""
    return {
        f"pooling.{layer}.{name.removeprefix('linear.')}": tensor
        for layer, folder in pooled.dense.items()
        for name, tensor in _read_headers(folder).items()
    }


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


def _resolve_tying(spec: ModelSpec, names: NameTable, tensors: Mapping[str, StoredTensor]) -> ModelSpec:
    """A tied model may still carry a head; one that differs from the embedding is what the model was saved with, and counts."""
    if not spec.head.tied:
        return spec
    embed, head = (tensors.get(tensor_of(names, tensors, parameter) or "") for parameter in ("embed.weight", "head.weight"))
    if embed is None or head is None or _same_values(embed, head):
        return spec
    return dataclasses.replace(spec, head=dataclasses.replace(spec.head, tied=False))


def _same_values(left: StoredTensor, right: StoredTensor, chunk: int = 1 << 26) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return all(
        torch.equal(
            read_range(left.path, left.offset + start, min(chunk, left.size - start)),
            read_range(right.path, right.offset + start, min(chunk, right.size - start)),
        )
        for start in range(0, left.size, chunk)
    )
