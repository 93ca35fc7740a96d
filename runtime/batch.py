"""A step's inputs as the executor takes them, written into buffers that are allocated once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .scheduler import Chunk


@dataclass(frozen=True)
class StepInputs:
    """One ragged forward over S sequences with T new tokens. All int32, all contiguous.

    tokens, positions [T]; query_start [S + 1], prefix sums of the new tokens per sequence;
    seq_lens [S], tokens of each sequence after this step; block_table [S, B], padded with 0;
    slots [T], block * block_size + offset where each new token's keys and values go.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slots: torch.Tensor


class BatchBuilder:
    """Turns chunks into StepInputs. What `build` returns is valid until the next `build`."""

    def __init__(self, *, max_batch_tokens: int, max_num_seqs: int, max_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._tokens = np.zeros(max_batch_tokens, np.int32)
        self._positions = np.zeros(max_batch_tokens, np.int32)
        self._slots = np.zeros(max_batch_tokens, np.int32)
        self._query_start = np.zeros(max_num_seqs + 1, np.int32)
        self._seq_lens = np.zeros(max_num_seqs, np.int32)
        self._table = np.zeros(max_num_seqs * max_blocks, np.int32)

    def build(self, chunks: Sequence[Chunk]) -> StepInputs:
        """Inputs for these chunks, one sequence per chunk, in their order."""
        block_size = self._block_size
        size = len(chunks)
        width = max(chunk.sequence.num_blocks for chunk in chunks)
        table = self._table[: size * width].reshape(size, width)
        tokens, positions, slots = self._tokens, self._positions, self._slots
        query_start, seq_lens = self._query_start, self._seq_lens
        at = 0
        for row, (sequence, start, count) in enumerate(chunks):
            blocks = sequence.num_blocks
            table[row, :blocks] = sequence.table[:blocks]
            table[row, blocks:] = 0
            end = start + count
            if count == 1:
                tokens[at] = sequence.tokens[start]
                positions[at] = start
                slots[at] = sequence.table[start // block_size] * block_size + start % block_size
            else:
                tokens[at : at + count] = sequence.tokens[start:end]
                places: NDArray[np.int32] = np.arange(start, end, dtype=np.int32)
                positions[at : at + count] = places
                slots[at : at + count] = sequence.table[places // block_size] * block_size + places % block_size
            at += count
            query_start[row + 1] = at
            seq_lens[row] = end
        return StepInputs(
            tokens=torch.from_numpy(tokens[:at]),
            positions=torch.from_numpy(positions[:at]),
            query_start=torch.from_numpy(query_start[: size + 1]),
            seq_lens=torch.from_numpy(seq_lens[:size]),
            block_table=torch.from_numpy(table),
            slots=torch.from_numpy(slots[:at]),
        )
