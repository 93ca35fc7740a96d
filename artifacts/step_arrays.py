"""A step written down by hand: for probes, references and tests, where no scheduler does it."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Piece(NamedTuple):
    """New tokens of one sequence.

    tokens: of the whole sequence; the step computes those from `start` on. blocks: by cache group, the
    block of each `block_size` tokens. wanted: positions whose logits are wanted, by default the last one. pair_start: where the
    second text of a pair begins, 0 if there is none.
    """

    tokens: Sequence[int]
    start: int
    blocks: Mapping[str, Sequence[int]]
    wanted: Sequence[int] | None = None
    pair_start: int = 0


def whole_prompts(prompts: Sequence[Sequence[int]], block_sizes: Mapping[str, int], *, wanted: Sequence[int] | None = None) -> list[Piece]:
    """Pieces that run whole prompts over empty caches, in blocks 0, 1, 2, ... block_sizes: by cache group. wanted: as in `Piece`."""
    pieces = []
    used = dict.fromkeys(block_sizes, 0)
    for tokens in prompts:
        blocks = {group: range(used[group], used[group] - (-len(tokens) // size)) for group, size in block_sizes.items()}
        used = {group: held.stop for group, held in blocks.items()}
        pieces.append(Piece(tokens, 0, blocks, wanted))
    return pieces


def step_arrays(pieces: Sequence[Piece], block_sizes: Mapping[str, int]) -> dict[str, NDArray[np.int32]]:
    """The inputs of one step of these pieces, by name as in step_inputs.py. block_sizes: by cache group."""
    counts = [len(piece.tokens) - piece.start for piece in pieces]
    starts = [0, *accumulate(counts)]
    wanted = [[len(piece.tokens) - 1] if piece.wanted is None else piece.wanted for piece in pieces]
    values: dict[str, Any] = {
        "tokens": [token for piece in pieces for token in piece.tokens[piece.start :]],
        "positions": [place for piece in pieces for place in range(piece.start, len(piece.tokens))],
        "cu_seqlens": starts,
        "seq_lens": [len(piece.tokens) for piece in pieces],
        "logit_rows": [
            start + place - piece.start for piece, start, places in zip(pieces, starts, wanted, strict=False) for place in places
        ],
        "token_types": [int(0 < piece.pair_start <= place) for piece in pieces for place in range(piece.start, len(piece.tokens))],
    }
    for group, size in block_sizes.items():
        width = max(len(piece.blocks[group]) for piece in pieces)
        held = [list(piece.blocks[group]) for piece in pieces]
        values[f"block_table.{group}"] = [[*blocks, *[0] * (width - len(blocks))] for blocks in held]
        values[f"slot_mapping.{group}"] = [
            blocks[place // size] * size + place % size
            for piece, blocks in zip(pieces, held, strict=True)
            for place in range(piece.start, len(piece.tokens))
        ]
    return {name: np.array(value, np.int32) for name, value in values.items()}
