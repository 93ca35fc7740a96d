"""How the text of a flag becomes a value."""

import argparse

import pytest

from engine.options.values import byte_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("2GiB", 2 * 1024**3),
        ("2G", 2 * 1024**3),
        ("2GB", 2 * 1000**3),
        ("1.5 GiB", 3 * 1024**3 // 2),
        ("512mb", 512 * 1000**2),
        ("1B", 1),
        ("3kib", 3072),
        ("1T", 1024**4),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2GiBs", "2 giga", "1,5G", "0x10", "1e9"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        byte_size(text)
