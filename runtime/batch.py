"""A step's inputs as the executor takes them, written into buffers that are allocated once."""

from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from .scheduler import Chunk
from .sequence import Sequence


@dataclass(frozen=True)
class StepInputs:
    """One ragged forward over S sequences with T new tokens. All int32, all contiguous.

    tokens, positions [T]; query_start [S + 1], prefix sums of the new tokens per sequence;
    seq_lens [S], tokens of each sequence after this step; block_table [S, B], padded with 0;
    slots [T], block * block_size + offset where each new token's keys and values go.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    query_start: NDArray[np.int32]
    seq_lens: NDArray[np.int32]
    block_table: NDArray[np.int32]
    slots: NDArray[np.int32]


class Batch:
    """Inputs of a step but for the newest tokens, which the step before it may still have to choose."""

    def __init__(self, buffers: "_Buffers", inputs: StepInputs, decoding: list[Sequence]) -> None:
        self.buffers = buffers
        self._inputs = inputs
        self._decoding = decoding

    def complete(self) -> StepInputs:
        """The inputs, once every step before this one has been computed."""
        self.buffers.tokens[: len(self._decoding)] = [sequence.last_token for sequence in self._decoding]
        return self._inputs


class BatchBuilder:
    """Turns chunks into batches, at most two at a time: one being computed and one to come."""

    def __init__(self, *, max_batch_tokens: int, max_num_seqs: int, max_blocks: int, block_size: int) -> None:
        self._free = [_Buffers(max_batch_tokens, max_num_seqs, max_blocks, block_size) for _ in range(2)]

    def build(self, chunks: list[Chunk]) -> Batch:
        """A batch of these chunks, one sequence per chunk, in their order: decoding sequences first."""
        return self._free.pop().fill(chunks)

    def recycle(self, batch: Batch) -> None:
        """Nobody needs this batch any more."""
        self._free.append(batch.buffers)


class _Buffers:
    """Memory for one batch."""

    def __init__(self, max_batch_tokens: int, max_num_seqs: int, max_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self.tokens = np.zeros(max_batch_tokens, np.int32)
        self._positions = np.zeros(max_batch_tokens, np.int32)
        self._slots = np.zeros(max_batch_tokens, np.int32)
        self._query_start = np.zeros(max_num_seqs + 1, np.int32)
        self._seq_lens = np.zeros(max_num_seqs, np.int32)
        self._table = np.zeros(max_num_seqs * max_blocks, np.int32)
        self._width = 0
        self._rows: list[tuple[list[int], int]] = [([], 0)] * max_num_seqs
        """The list of blocks that each row of the table was written from, and its length then."""
        self._shape = (0, 0, 0)
        self._inputs: StepInputs | None = None

    def fill(self, chunks: list[Chunk]) -> Batch:
        decodes = list(takewhile(lambda chunk: chunk.size == 1 and chunk.chooses, chunks))
        self._add_decodes(decodes)
        size = self._add_prompts(chunks[len(decodes) :], len(decodes))
        width = self._fill_table([chunk.sequence.blocks for chunk in chunks])
        inputs = self._views(size, len(chunks), width)
        return Batch(self, inputs, [chunk.sequence for chunk in decodes])

    def _add_decodes(self, chunks: list[Chunk]) -> None:
        size, count = self._block_size, len(chunks)
        self._positions[:count] = [chunk.start for chunk in chunks]
        self._slots[:count] = [sequence.blocks[start // size] * size + start % size for sequence, start, _, _ in chunks]
        self._query_start[: count + 1] = range(count + 1)
        self._seq_lens[:count] = [chunk.start + 1 for chunk in chunks]

    def _add_prompts(self, chunks: list[Chunk], row: int) -> int:
        """Add these after `row` decoding sequences; returns how many tokens there are in all."""
        size, at = self._block_size, row
        for sequence, start, count, _ in chunks:
            end = start + count
            places = np.arange(start, end, dtype=np.int32)
            self.tokens[at : at + count] = sequence.tokens[start:end]
            self._positions[at : at + count] = places
            self._slots[at : at + count] = sequence.table[places // size] * size + places % size
            at += count
            self._seq_lens[row] = end
            row += 1
            self._query_start[row] = at
        return at

    def _fill_table(self, held: list[list[int]]) -> int:
        """Write the rows of the block table that have changed since the last time; returns its width."""
        width = max(map(len, held))
        if width != self._width:
            self._width = width
            self._rows = [([], 0)] * len(self._rows)
        for row, blocks in enumerate(held):
            count = len(blocks)
            before, count_before = self._rows[row]
            if before is not blocks or count_before != count:  # a sequence only ever appends to its list
                self._rows[row] = (blocks, count)
                self._table[row * width : row * width + count] = blocks
                self._table[row * width + count : (row + 1) * width] = 0
        return width

    def _views(self, tokens: int, sequences: int, width: int) -> StepInputs:
        if self._inputs is None or self._shape != (tokens, sequences, width):
            self._shape = (tokens, sequences, width)
            self._inputs = StepInputs(
                tokens=self.tokens[:tokens],
                positions=self._positions[:tokens],
                query_start=self._query_start[: sequences + 1],
                seq_lens=self._seq_lens[:sequences],
                block_table=self._table[: sequences * width].reshape(sequences, width),
                slots=self._slots[:tokens],
            )
        return self._inputs
