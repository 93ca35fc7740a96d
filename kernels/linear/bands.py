"""Bands: what a merged weight of several formats consists of, each some consecutive outputs in a format of its own.

In a graph, in the manifest and for the operator `linear_mixed` they are a text, which is also the format of such
a weight: `q5_0:896+q5_0:128+q8_0:128`. Its bytes are those of the bands, packed as if each were a weight of its own
(formats.py), one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Band:
    """Some consecutive outputs of a linear, and the format of their weights."""

    format: str
    out_features: int

    def __str__(self) -> str:
        return f"{self.format}:{self.out_features}"


def write_bands(bands: Sequence[Band]) -> str:
    return "+".join(map(str, bands))


def read_bands(text: str) -> list[Band]:
    """What `write_bands` was given. Raises ValueError for any other text."""
    pairs = [band.split(":") for band in text.split("+")]
    return [Band(format, int(out_features)) for format, out_features in pairs]


def is_mixed(format: str) -> bool:
    """Whether a weight of that format has bands."""
    return "+" in format
