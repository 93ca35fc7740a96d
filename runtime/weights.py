"""Opens the artifact's weights: memory-mapped, shared by every process that maps the same file."""

import math
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..artifacts import Manifest, WeightInfo, check_servable
from ..artifacts.manifest import DTYPE_BYTES
from ..errors import ArtifactError
from .memory import Memory

_HEADER_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
"""What other readers of the format allow."""
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "int8": "I8", "int32": "I32"}
"""Ours, and what safetensors calls them."""


class _Entry(msgspec.Struct, frozen=True):
    """A tensor in a safetensors header; data_offsets count from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Span(NamedTuple):
    """Where a packed tensor lies: bytes begin to begin + nbytes of a file."""

    path: Path
    begin: int
    nbytes: int


def locate_weights(directory: Path, manifest: Manifest) -> dict[str, Span]:
    """Where every packed tensor lies, by weight name; of the files only the headers are read.

    Raises ArtifactError for a file that is not what the manifest says.
    """
    check_servable(manifest)
    files: dict[str, dict[str, WeightInfo]] = {}
    for weight, info in manifest.weights.items():
        files.setdefault(info.file, {})[weight] = info
    return {weight: span for name, wanted in files.items() for weight, span in _locate(directory / name, wanted).items()}


def open_weights(directory: Path, manifest: Manifest) -> dict[str, Memory]:
    """Every packed tensor by weight name. Nothing is read until it is used.

    Raises ArtifactError for a file that is not what the manifest says.
    """
    spans = locate_weights(directory, manifest)
    mapped = {path: _map(path) for path in {span.path for span in spans.values()}}
    return {
        weight: Memory(mapped[span.path][span.begin : span.begin + span.nbytes], info.dtype, tuple(info.shape))
        for weight, info in manifest.weights.items()
        for span in (spans[weight],)
    }


def _map(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _locate(path: Path, wanted: dict[str, WeightInfo]) -> dict[str, Span]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER_BYTES), "little")
            size = os.fstat(file.fileno()).st_size
            header = msgspec.json.decode(file.read(min(length, _MOST_HEADER_BYTES)), type=dict[str, Any])
        entries = {weight: msgspec.convert(header[weight], _Entry) for weight in wanted}
    except (OSError, ValueError, KeyError, RecursionError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} cannot be opened: {error}", hint="copy or build the artifact again") from error
    data = _HEADER_BYTES + length
    return {weight: _span(path, data, size, weight, entries[weight], info) for weight, info in wanted.items()}


def _span(path: Path, data: int, size: int, name: str, entry: _Entry, info: WeightInfo) -> Span:
    if entry.dtype != _DTYPES.get(info.dtype) or entry.shape != info.shape:
        raise ArtifactError(
            f"weight {name} is {entry.dtype} {entry.shape}, the manifest says {info.dtype} {info.shape}",
            hint="copy or build the artifact again",
        )
    begin, end = entry.data_offsets
    nbytes = math.prod(info.shape) * DTYPE_BYTES[info.dtype]
    if not 0 <= begin <= end <= size - data or nbytes != end - begin:
        raise ArtifactError(f"{path} cannot be opened: weight {name} lies outside of it", hint="copy or build the artifact again")
    return Span(path, data + begin, nbytes)
