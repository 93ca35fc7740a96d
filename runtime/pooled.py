"""What becomes of a row that a model gives for a whole text. Rows are finished one by one, so a vector never depends on the batch."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import PooledInfo
from ..protocol import Embed
from .sampling.sampler import NOT_FINITE, Choice

SMALLEST_NORM = 1e-12
"""Vectors shorter than this are not scaled to length 1 but divided by it, as PyTorch's `normalize` does."""


def vector_of(row: NDArray[np.float32], info: PooledInfo, request: Embed) -> Choice:
    """The vector, or the score, of a row of the model's result: float32, little-endian. Or why there is none."""
    if not np.isfinite(row).all():
        return Choice(-1, error=NOT_FINITE)
    if info.task == "score":
        return Choice(-1, vector=_bytes(np.array([_activated(float(row[0]), "none" if request.raw else info.activation)])))
    values = row[: request.dimensions] if request.dimensions else row
    if info.normalize and not request.raw:
        # the exact sum of squares, rounded once: it depends neither on the order nor on where the row lies
        norm = math.sqrt(math.fsum(np.square(values, dtype=np.float64)))
        values = values / np.float32(max(norm, SMALLEST_NORM))
    return Choice(-1, vector=_bytes(values))


def _activated(score: float, activation: str) -> float:
    if activation == "none":
        return score
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def _bytes(values: NDArray[Any]) -> bytes:
    return values.astype("<f4").tobytes()
