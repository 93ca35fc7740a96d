"""Steps for an executor, written down by hand: for each sequence its tokens so far, how many of them are old, and its blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.runtime.batch import StepInputs

BLOCK_SIZE = 32


class Chunk(NamedTuple):
    """tokens: of the whole sequence; the step computes those from `start` on. blocks: of the KV cache, by place."""

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]


def step_lists(chunks: Sequence[Chunk], block_size: int = BLOCK_SIZE) -> dict[str, Any]:
    """The arguments of StepInputs as lists."""
    width = max(len(chunk.blocks) for chunk in chunks)
    positions = [list(range(chunk.start, len(chunk.tokens))) for chunk in chunks]
    return {
        "tokens": [token for chunk in chunks for token in chunk.tokens[chunk.start :]],
        "positions": [place for places in positions for place in places],
        "query_start": np.cumsum([0, *map(len, positions)]).tolist(),
        "seq_lens": [len(chunk.tokens) for chunk in chunks],
        "block_table": [[*chunk.blocks, *[0] * (width - len(chunk.blocks))] for chunk in chunks],
        "slots": [
            chunk.blocks[place // block_size] * block_size + place % block_size
            for chunk, places in zip(chunks, positions, strict=True)
            for place in places
        ],
    }


def step_inputs(chunks: Sequence[Chunk], block_size: int = BLOCK_SIZE) -> StepInputs:
    return StepInputs(**{name: np.array(value, np.int32) for name, value in step_lists(chunks, block_size).items()})
