"""Damaged GGUF files: always an error of ours, never a wrong model."""

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import write_gguf
from random_checkpoints import write_random_checkpoint

from engine.errors import CheckpointError, EngineError, UnsupportedModelError
from engine.models.open import open_checkpoint
from engine.models.storage.gguf_header import read_gguf_header


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gguf")
    return write_gguf(write_random_checkpoint("llama", directory / "model", num_hidden_layers=1), directory / "whole.gguf")


def damaged(path: Path, content: bytes, name: str = "damaged.gguf") -> str:
    (path / name).write_bytes(content)
    return str(path / name)


def test_agrees_with_the_package_that_wrote_it(whole: Path) -> None:
    header, theirs = read_gguf_header(whole), gguf.GGUFReader(whole)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == fields.keys()
    for name, value in fields.items():
        expected: Any = float(str(np.float32(value))) if isinstance(value, float) else value
        assert header.metadata[name] == expected, name
    assert list(header.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.type, ours.offset, ours.size) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))


def test_a_file_cut_short_anywhere_says_so(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    tensors = read_gguf_header(whole).tensors.values()
    data_start, data_end = min(tensor.offset for tensor in tensors), max(tensor.offset + tensor.size for tensor in tensors)
    cuts = [0, 3, 4, 23, 24, *range(25, data_start, data_start // 60), data_start, data_end - 1]
    for cut in cuts:
        with pytest.raises(CheckpointError, match=r"cut\.gguf") as caught:
            open_checkpoint(damaged(tmp_path, content[:cut], "cut.gguf"))
        assert caught.value.hint is not None


def test_a_truncated_tensor_is_named_with_both_sizes(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    last = max(read_gguf_header(whole).tensors.items(), key=lambda item: item[1].offset)
    cut = last[1].offset + last[1].size - 1
    with pytest.raises(CheckpointError, match=rf"{last[0]} should end at byte {cut + 1}, but the file has {cut} bytes"):
        open_checkpoint(damaged(tmp_path, content[:cut]))


def test_flipped_bits_in_the_header_raise_nothing_but_our_errors(whole: Path, tmp_path: Path) -> None:
    content = bytearray(whole.read_bytes())
    header_size = min(tensor.offset for tensor in read_gguf_header(whole).tensors.values())
    dice = random.Random(0)
    refused = 0
    for _ in range(400):
        position, bit = dice.randrange(header_size), 1 << dice.randrange(8)
        content[position] ^= bit
        try:
            open_checkpoint(damaged(tmp_path, bytes(content)))
        except EngineError:
            refused += 1
        content[position] ^= bit
    assert refused > 0


def header(tensors: int, metadata: int, rest: bytes = b"", *, version: int = 3, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, metadata) + rest


KEY = struct.pack("<Q", 1) + b"k"
NESTED = KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000


@pytest.mark.parametrize(
    ("content", "error", "named"),
    [
        (b"", CheckpointError, "0 bytes"),
        (b"PK\x03\x04" + bytes(100), CheckpointError, "not a GGUF file"),
        (header(0, 0, version=1), UnsupportedModelError, "version 1"),
        (header(0, 0, order=">"), UnsupportedModelError, "a big-endian GGUF file"),
        (header(2**60, 0), CheckpointError, "go on to byte"),
        (header(0, 1, struct.pack("<Q", 2**63)), CheckpointError, "go on to byte"),
        (header(0, 1, KEY + struct.pack("<IIQ", 9, 8, 2**62)), CheckpointError, "array of"),
        (header(0, 1, KEY + struct.pack("<IIQ", 9, 4, 2**62)), CheckpointError, "go on to byte"),
        (header(0, 1, KEY + struct.pack("<I", 99)), CheckpointError, "unknown type 99"),
        (header(0, 1, struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 1)), CheckpointError, "not UTF-8"),
        (header(0, 1, NESTED), UnsupportedModelError, "nested"),
    ],
    ids=range(11),
)
def test_headers_that_cannot_be(content: bytes, error: type[Exception], named: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=named):
        open_checkpoint(damaged(tmp_path, content))
