"""The header of a safetensors file, checked against the file's size before anything relies on it."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from ...errors import CheckpointError

FETCH_AGAIN = "the file is truncated or damaged; fetch it again"

# Bits per element, of every dtype that the format knows.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: `offset` counts from the beginning of the file, in bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name. Raises CheckpointError unless header and file agree to the byte."""
    try:
        file_size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _damaged(path, f"it has {file_size} bytes, too few for a header")
            (length,) = struct.unpack("<Q", prefix)
            if 8 + length > file_size:
                raise _damaged(path, f"its header should end at byte {8 + length}, but the file has {file_size} bytes")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error.strerror or error}", hint="look at its permissions and at the disk"
        ) from error
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _tensor(path, name, entry, 8 + length, file_size) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header is not what the format asks for ({type(error).__name__}: {error})") from error
    _check_coverage(path, tensors, 8 + length, file_size)
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, object], data_start: int, file_size: int) -> StoredTensor:
    dtype, dimensions, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(path, f"tensor {name} has the unknown dtype {dtype!r}")
    if not _are_sizes(dimensions) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name} has shape {dimensions!r} and offsets {offsets!r}")
    begin, end = offsets
    size = math.prod(dimensions) * _BITS[dtype] // 8
    if end - begin != size:
        raise _damaged(path, f"tensor {name} ({dtype} {dimensions}) needs {size} bytes; its offsets give it {end - begin}")
    if data_start + end > file_size:
        raise _damaged(path, f"tensor {name} should end at byte {data_start + end}, but the file has {file_size} bytes")
    return StoredTensor(path=path, dtype=dtype, shape=tuple(dimensions), offset=data_start + begin, size=size)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value)


def _check_coverage(path: Path, tensors: dict[str, StoredTensor], data_start: int, file_size: int) -> None:
    """The format allows neither holes nor overlaps."""
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != position:
            raise _damaged(path, f"tensor {name} begins at byte {tensor.offset}; the one before it ends at {position}")
        position += tensor.size
    if position != file_size:
        raise _damaged(path, f"its tensors end at byte {position}, but the file has {file_size} bytes")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is not a whole safetensors file: {reason}", hint=FETCH_AGAIN)
