"""Steps for an executor, written down by hand: for each sequence its tokens so far, how many of them are old, and its blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.artifacts.step_arrays import Piece, step_arrays
from engine.runtime.batch import StepInputs

BLOCK_SIZE = 32


class Chunk(NamedTuple):
    """tokens: of the whole sequence; the step computes those from `start` on. blocks: of the KV cache, by place."""

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]


def _arrays(chunks: Sequence[Chunk], block_size: int) -> dict[str, NDArray[np.int32]]:
    pieces = [Piece(chunk.tokens, chunk.start, {"full": chunk.blocks}) for chunk in chunks]
    return step_arrays(pieces, {"full": block_size})


def step_lists(chunks: Sequence[Chunk], block_size: int = BLOCK_SIZE) -> dict[str, Any]:
    """The inputs by name as lists."""
    return {name: array.tolist() for name, array in _arrays(chunks, block_size).items()}


def step_inputs(chunks: Sequence[Chunk], block_size: int = BLOCK_SIZE) -> StepInputs:
    return StepInputs(_arrays(chunks, block_size))
