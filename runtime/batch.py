"""A step's inputs as the executor takes them, written into buffers that are allocated once."""

import ctypes
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import CacheGroup, InputInfo
from .scheduler import Chunk
from .sequence import Sequence


class StepInputs:
    """One ragged forward: its inputs by name, contiguous, as artifacts/step_inputs.py says."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = arrays
        self.tokens = len(arrays["tokens"])
        self.sequences = len(arrays["seq_lens"])
        self.rows = len(arrays["logit_rows"])
        self._table: tuple[Any, Any] | None = None

    def table(self, infos: list[InputInfo]) -> tuple[Any, Any]:
        """For native code: the addresses of these inputs, and their sizes one after another. Made once: it is always the same program."""
        if self._table is None:
            arrays = [self.arrays[info.name] for info in infos]
            for info, array in zip(infos, arrays, strict=True):
                assert (array.dtype.name, array.ndim) == (info.dtype, len(info.dims)), info.name
                assert array.flags.c_contiguous, info.name
            sizes = [size for array in arrays for size in array.shape]
            addresses = [array.ctypes.data for array in arrays]
            self._table = (ctypes.c_void_p * len(addresses))(*addresses), (ctypes.c_int64 * len(sizes))(*sizes)
        return self._table


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
    """Turns chunks into batches, at most two at a time: one being computed and one to come.

    groups: of the caches. max_context: tokens of the longest sequence. takes_first_row: whether the row that is wanted of a whole
    text is that of its first token, not of its last.
    """

    def __init__(
        self, *, max_batch_tokens: int, max_num_seqs: int, max_context: int, groups: list[CacheGroup], takes_first_row: bool = False
    ) -> None:
        self._free = [_Buffers(max_batch_tokens, max_num_seqs, max_context, groups, takes_first_row) for _ in range(2)]

    def build(self, chunks: list[Chunk]) -> Batch:
        """A batch of these chunks, one sequence per chunk, in their order: decoding sequences first."""
        return self._free.pop().fill(chunks)

    def recycle(self, batch: Batch) -> None:
        """Nobody needs this batch any more."""
        self._free.append(batch.buffers)


class _Buffers:
    """Memory for one batch."""

    def __init__(self, max_batch_tokens: int, max_num_seqs: int, max_context: int, groups: list[CacheGroup], takes_first_row: bool) -> None:
        self._takes_first_row = takes_first_row
        self.tokens = np.zeros(max_batch_tokens, np.int32)
        self._token_types = np.zeros(max_batch_tokens, np.int32)
        self._positions = np.zeros(max_batch_tokens, np.int32)
        self._cu_seqlens = np.zeros(max_num_seqs + 1, np.int32)
        self._seq_lens = np.zeros(max_num_seqs, np.int32)
        self._logit_rows = np.zeros(max_num_seqs, np.int32)
        self._paged = [
            _PagedBuffers(index, group, max_batch_tokens, max_num_seqs, -(-max_context // group.block_size))
            for index, group in enumerate(groups)
        ]
        self._shape: tuple[int, ...] = ()
        self._inputs: StepInputs | None = None

    def fill(self, chunks: list[Chunk]) -> Batch:
        decodes = list(takewhile(lambda chunk: chunk.size == 1 and chunk.chooses, chunks))
        self._add_decodes(decodes)
        tokens, rows = self._add_prompts(chunks[len(decodes) :], len(decodes))
        widths = [paged.fill(chunks, len(decodes)) for paged in self._paged]
        inputs = self._views(tokens, len(chunks), rows, widths)
        return Batch(self, inputs, [chunk.sequence for chunk in decodes])

    def _add_decodes(self, chunks: list[Chunk]) -> None:
        count = len(chunks)
        self._positions[:count] = [chunk.start for chunk in chunks]
        self._cu_seqlens[: count + 1] = range(count + 1)
        self._seq_lens[:count] = [chunk.start + 1 for chunk in chunks]
        self._logit_rows[:count] = range(count)
        self._token_types[:count] = 0

    def _add_prompts(self, chunks: list[Chunk], decodes: int) -> tuple[int, int]:
        """Add these after so many decoding sequences; returns how many tokens and rows of logits there are in all."""
        at = row = rows = decodes
        for sequence, start, count, wanted, _ in chunks:
            end = start + count
            self.tokens[at : at + count] = sequence.tokens[start:end]
            self._positions[at : at + count] = range(start, end)
            pair_start = 0 if sequence.embed is None else sequence.embed.pair_start
            self._token_types[at : at + count] = 0
            self._token_types[at + pair_start : at + count] = int(pair_start > 0)
            at += count
            self._seq_lens[row] = end
            row += 1
            self._cu_seqlens[row] = at
            first = at - count if self._takes_first_row else at - wanted
            self._logit_rows[rows : rows + wanted] = range(first, first + wanted)
            rows += wanted
        if rows == 0:  # no kernel has to know of steps without logits: one row is computed for nobody
            self._logit_rows[0] = 0
            rows = 1
        return at, rows

    def _views(self, tokens: int, sequences: int, rows: int, widths: list[int]) -> StepInputs:
        shape = (tokens, sequences, rows, *widths)
        if self._inputs is None or self._shape != shape:
            self._shape = shape
            paged = [paged.views(tokens, sequences, width) for paged, width in zip(self._paged, widths, strict=True)]
            self._inputs = StepInputs(
                {
                    "tokens": self.tokens[:tokens],
                    "positions": self._positions[:tokens],
                    "cu_seqlens": self._cu_seqlens[: sequences + 1],
                    "seq_lens": self._seq_lens[:sequences],
                    "logit_rows": self._logit_rows[:rows],
                    "token_types": self._token_types[:tokens],
                    **{name: view for views in paged for name, view in views.items()},
                }
            )
        return self._inputs


class _PagedBuffers:
    """The inputs that say where a group's keys and values lie. index: of the group among all. max_blocks: of a sequence."""

    def __init__(self, index: int, group: CacheGroup, max_batch_tokens: int, max_num_seqs: int, max_blocks: int) -> None:
        self._index = index
        self._name = group.name
        self._block_size = group.block_size
        self._slots = np.zeros(max_batch_tokens, np.int32)
        self._table = np.zeros(max_num_seqs * max_blocks, np.int32)
        self._width = 0
        self._rows: list[tuple[list[int], int]] = [([], 0)] * max_num_seqs
        """The list of blocks that each row of the table was written from, and its length then."""

    def fill(self, chunks: list[Chunk], decodes: int) -> int:
        """Write all of them; returns the width of the block table. decodes: how many chunks have a single token, which come first."""
        size, index = self._block_size, self._index
        held = [chunk.sequence.held[index] for chunk in chunks]
        starts = [chunk.start for chunk in chunks[:decodes]]
        self._slots[:decodes] = [own.blocks[start // size] * size + start % size for own, start in zip(held, starts, strict=False)]
        at = decodes
        for own, (_, start, count, _, _) in zip(held[decodes:], chunks[decodes:], strict=True):
            places = np.arange(start, start + count, dtype=np.int32)
            self._slots[at : at + count] = own.table[places // size] * size + places % size
            at += count
        return self._fill_table([own.blocks for own in held])

    def _fill_table(self, held: list[list[int]]) -> int:
        """Write the rows that have changed since the last time; returns the width."""
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

    def views(self, tokens: int, sequences: int, width: int) -> dict[str, NDArray[np.int32]]:
        return {
            f"block_table.{self._name}": self._table[: sequences * width].reshape(sequences, width),
            f"slot_mapping.{self._name}": self._slots[:tokens],
        }
