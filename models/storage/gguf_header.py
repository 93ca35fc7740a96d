"""The header of a GGUF file (versions 2 and 3): metadata and where each tensor lies, checked against the file's size.

A large model comes in several files, `NAME-00001-of-00003.gguf`: the first has the metadata, each has tensors.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ...errors import CheckpointError, UnsupportedModelError

_MAGIC = b"GGUF"
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """shape: the logical shape, rows first (GGUF itself counts the other way). offset: bytes from the beginning of `file`."""

    file: Path
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf_header(path: Path) -> GGUFHeader:
    """Everything of a GGUF file but its data. Raises CheckpointError unless header and file agree."""
    try:
        file_size = path.stat().st_size
        if file_size < 24:
            raise damaged(path, f"it has {file_size} bytes, too few for a header")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(path, data))
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error.strerror or error}", hint="look at its permissions and at the disk"
        ) from error


def read_gguf(path: Path) -> GGUFHeader:
    """The header of a model: of a file, or of all the files of which `path` is one.

    Raises CheckpointError unless all of them are there and agree.
    """
    header = read_gguf_header(path)
    count = header.metadata.get("split.count", 0)
    if count <= 1:
        return header
    parts = [read_gguf_header(part) for part in _parts(path, count)]
    tensors: dict[str, GGUFTensor] = {}
    for number, part in enumerate(parts):
        stored = part.metadata.get("split.no"), part.metadata.get("split.count")
        if stored != (number, count):
            raise CheckpointError(
                f"part {number + 1} of {path.name} says that it is part {_counted(stored[0])} of {stored[1]}",
                hint="files of different models, or a renamed one: fetch all parts again",
            )
        if again := sorted(tensors.keys() & part.tensors.keys()):
            raise CheckpointError(f"two parts of {path.name} have a tensor named {again[0]}", hint="fetch all parts again")
        tensors |= part.tensors
    wanted = parts[0].metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != wanted:
        raise CheckpointError(f"the parts of {path.name} have {len(tensors)} tensors of {wanted}", hint="fetch all parts again")
    return GGUFHeader(metadata=parts[0].metadata, tensors=tensors)


def model_name(path: Path) -> str:
    """What a model in this file is called: the file's name without its ending, and without the number of a part."""
    found = _PART.fullmatch(path.name)
    return found["name"] if found else path.stem


_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def _parts(path: Path, count: int) -> list[Path]:
    found = _PART.fullmatch(path.name)
    if found is None or int(found["count"]) != count:
        raise CheckpointError(
            f"{path.name} is one part of {count}, and its name does not say which files have the others",
            hint=f"parts are named NAME-00001-of-{count:05d}.gguf and so on, and lie in one directory",
        )
    parts = [path.with_name(f"{found['name']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{path.name} is one part of {count}, of which {len(missing)} are not there: {', '.join(missing[:3])}",
            hint="fetch all parts into one directory",
        )
    return parts


def _counted(number: Any) -> Any:
    return number + 1 if isinstance(number, int) else number


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error for a file that is not what it should be."""
    return CheckpointError(f"{path.name} is not a whole GGUF file: {reason}", hint="the file is truncated or damaged; fetch it again")


class _Cursor:
    """Reads values one after another and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise damaged(self.path, f"its header should go on to byte {end}, but the file has {len(self.data)} bytes")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def scalar(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        raw = self.take(self.scalar("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"the string that ends at byte {self.position} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise damaged(self.path, f"metadata of the unknown type {kind} before byte {self.position}")
        value = self.scalar(_SCALARS[kind])
        # The shortest decimal that means the same float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            layout = struct.Struct(f"<{_SCALARS[kind]}")
            return [each for (each,) in layout.iter_unpack(self.take(count * layout.size))]
        if kind == _ARRAY:
            raise UnsupportedModelError(
                f"{self.path.name}: metadata with nested arrays is not supported",
                hint="the file is of a newer kind than this version knows",
            )
        if count > len(self.data) - self.position:
            raise damaged(self.path, f"an array of {count} entries begins at byte {self.position} of {len(self.data)}")
        return [self.value(kind) for _ in range(count)]


def _parse(cursor: _Cursor) -> GGUFHeader:
    path = cursor.path
    magic = cursor.take(4)
    if magic != _MAGIC:
        raise CheckpointError(f"{path.name} is not a GGUF file: it begins with {magic!r}", hint="give a .gguf file or a directory")
    version = cursor.scalar("I")
    if version not in (2, 3):
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModelError(
                f"{path.name} is a big-endian GGUF file; only little-endian ones are supported",
                hint="turn it around with gguf-py's `gguf-convert-endian FILE little`, or fetch the usual file of this model",
            )
        raise UnsupportedModelError(
            f"{path.name} is a GGUF file of version {version}; versions 2 and 3 are supported",
            hint="convert the model again with a recent llama.cpp",
        )
    tensor_count, metadata_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int]] = {}
    for _ in range(tensor_count):
        name = cursor.string()
        if name in entries:
            raise damaged(path, f"it has two tensors named {name}")
        shape = tuple(reversed([cursor.scalar("Q") for _ in range(cursor.scalar("I"))]))
        entries[name] = (_tensor_type(path, name, cursor.scalar("I")), shape, cursor.scalar("Q"))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise damaged(path, f"general.alignment is {alignment!r}; it must be a power of two")
    data_start = math.ceil(cursor.position / alignment) * alignment
    tensors = {name: _place(cursor, name, *entry, data_start=data_start, alignment=alignment) for name, entry in entries.items()}
    _check_no_overlap(path, tensors)
    return GGUFHeader(metadata=metadata, tensors=tensors)


def _tensor_type(path: Path, name: str, number: int) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        raise UnsupportedModelError(
            f"{path.name}: tensor {name} is of type {number}, which is not known",
            hint="the file is of a newer kind than this version knows",
        ) from None


def _place(
    cursor: _Cursor, name: str, type: GGMLQuantizationType, shape: tuple[int, ...], offset: int, *, data_start: int, alignment: int
) -> GGUFTensor:
    group, group_bytes = GGML_QUANT_SIZES[type]
    if not shape or shape[-1] % group:
        raise damaged(cursor.path, f"tensor {name} has shape {list(shape)}; rows of {type.name} come in groups of {group}")
    size = math.prod(shape) // group * group_bytes
    begin = data_start + offset
    if offset % alignment:
        raise damaged(cursor.path, f"tensor {name} begins at offset {offset}, which is not a multiple of {alignment}")
    if begin + size > len(cursor.data):
        raise damaged(cursor.path, f"tensor {name} should end at byte {begin + size}, but the file has {len(cursor.data)} bytes")
    return GGUFTensor(file=cursor.path, type=type, shape=shape, offset=begin, size=size)


def _check_no_overlap(path: Path, tensors: dict[str, GGUFTensor]) -> None:
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset < end:
            raise damaged(path, f"tensor {name} begins at byte {tensor.offset}, inside the one before it, which ends at {end}")
        end = tensor.offset + tensor.size
