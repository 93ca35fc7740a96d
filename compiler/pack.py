"""Stage 6: weights, one at a time, through their recipes into safetensors files.

The header of a file is known before any data is, because the graph fixes every shape; so the
file is written front to back and memory holds one tensor at a time. Tensors start at multiples
of 64 bytes: a gap is filled by an entry named `~gap.N`, since the format allows no holes.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..artifacts import FileInfo, WeightInfo
from ..models.checkpoint import Checkpoint
from .quantizer import Quantizing
from .recipes import make
from .weights_plan import PackedWeight

ALIGNMENT = 64
SHARD_BYTES = 2 * 1024**3
_DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "int32": "I32"}
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int32": 4}


def packed_bytes(weight: PackedWeight) -> int:
    return math.prod(weight.shape) * _DTYPE_BYTES[weight.dtype]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What the manifest says of the weights: of each by name, and of each file."""

    index: dict[str, WeightInfo]
    files: dict[str, FileInfo]


def pack(
    plan: list[PackedWeight], checkpoint: Checkpoint, directory: Path, quantizing: Quantizing, on_weight: Callable[[str, int], None]
) -> Packed:
    """Write weights/NNNNN.safetensors under `directory`.

    on_weight(name, bytes) is called after each. Raises CheckpointError if a source cannot be read,
    OSError if the disk is full.
    """
    (directory / "weights").mkdir()
    files = {name: _write_shard(directory / name, shard, checkpoint, quantizing, on_weight) for name, shard in _named_shards(plan)}
    return Packed(index=_index(plan), files=files)


def leave_out(plan: list[PackedWeight]) -> Packed:
    """What `pack` would have written, and no files."""
    return Packed(index=_index(plan), files={})


def _named_shards(plan: list[PackedWeight]) -> list[tuple[str, list[PackedWeight]]]:
    return [(f"weights/{index:05}.safetensors", shard) for index, shard in enumerate(_shards(plan))]


def _index(plan: list[PackedWeight]) -> dict[str, WeightInfo]:
    return {
        weight.name: WeightInfo(
            file=name,
            dtype=weight.dtype,
            shape=list(weight.shape),
            format=weight.format,
            sources=list(weight.sources),
            recipe=list(weight.recipe),
            experts=weight.experts,
        )
        for name, shard in _named_shards(plan)
        for weight in shard
    }


def _shards(plan: list[PackedWeight]) -> list[list[PackedWeight]]:
    shards: list[list[PackedWeight]] = []
    size = SHARD_BYTES
    for weight in plan:
        if size + packed_bytes(weight) > SHARD_BYTES and (size or not shards):
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += packed_bytes(weight)
    return shards


def _write_shard(
    path: Path, shard: list[PackedWeight], checkpoint: Checkpoint, quantizing: Quantizing, on_weight: Callable[[str, int], None]
) -> FileInfo:
    header, gaps = _layout(shard)
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        write(header)
        for weight, gap in zip(shard, gaps, strict=True):
            write(_as_bytes(make(weight, checkpoint, quantizing)))
            write(bytes(gap))
            on_weight(weight.name, packed_bytes(weight))
        return FileInfo(bytes=file.tell(), sha256=digest.hexdigest())


def _layout(shard: list[PackedWeight]) -> tuple[bytes, list[int]]:
    """The file's header, and the bytes of padding after each tensor."""
    entries: dict[str, object] = {}
    gaps: list[int] = []
    offset = 0
    for index, weight in enumerate(shard):
        end = offset + packed_bytes(weight)
        entries[weight.name] = {"dtype": _DTYPE_CODES[weight.dtype], "shape": list(weight.shape), "data_offsets": [offset, end]}
        gaps.append(-end % ALIGNMENT)
        offset = end + gaps[-1]
        if gaps[-1]:
            entries[f"~gap.{index}"] = {"dtype": "U8", "shape": [gaps[-1]], "data_offsets": [end, offset]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, gaps


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
