"""Opens the artifact's weights: memory-mapped, shared by every process that maps the same file."""

import mmap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..artifacts import Manifest, WeightInfo
from ..errors import ArtifactError
from .memory import Memory

_HEADER_BYTES = 8
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "int8": "I8", "int32": "I32"}
"""Ours, and what safetensors calls them."""


class _Entry(msgspec.Struct, frozen=True):
    """A tensor in a safetensors header; data_offsets count from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def open_weights(directory: Path, manifest: Manifest) -> dict[str, Memory]:
    """Every packed tensor by weight name. Nothing is read until it is used.

    Raises ArtifactError for a file that is not what the manifest says.
    """
    files: dict[str, dict[str, WeightInfo]] = {}
    for weight, info in manifest.weights.items():
        files.setdefault(info.file, {})[weight] = info
    return {weight: memory for name, wanted in files.items() for weight, memory in _open_file(directory / name, wanted).items()}


def _open_file(path: Path, wanted: dict[str, WeightInfo]) -> dict[str, Memory]:
    try:
        with path.open("rb") as file:
            mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        length = int.from_bytes(mapped[:_HEADER_BYTES].tobytes(), "little")
        header: dict[str, Any] = msgspec.json.decode(mapped[_HEADER_BYTES : _HEADER_BYTES + length].tobytes())
        entries = {weight: msgspec.convert(header[weight], _Entry) for weight in wanted}
    except (OSError, ValueError, KeyError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} cannot be opened: {error}", hint="copy or build the artifact again") from error
    data = mapped[_HEADER_BYTES + length :]
    return {weight: _tensor(path, data, weight, entries[weight], info) for weight, info in wanted.items()}


def _tensor(path: Path, data: NDArray[np.uint8], name: str, entry: _Entry, info: WeightInfo) -> Memory:
    if entry.dtype != _DTYPES.get(info.dtype) or entry.shape != info.shape:
        raise ArtifactError(f"weight {name} is {entry.dtype} {entry.shape}, the manifest says {info.dtype} {info.shape}")
    begin, end = entry.data_offsets
    memory = Memory(data[begin:end], info.dtype, tuple(info.shape))
    if not 0 <= begin <= end <= len(data) or memory.nbytes != end - begin:
        raise ArtifactError(f"{path} cannot be opened: weight {name} lies outside of it", hint="copy or build the artifact again")
    return memory
