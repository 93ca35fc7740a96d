"""A step's inputs, padded to the size of its graph, on their way to the GPU.

All but the block table lie next to each other, each aligned, in an order and at offsets that only
the graph's size decides: so they go over in one copy. Graphs run one after another and share the
memory.
"""

import ctypes
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from ...artifacts.graph import DRAW_INPUTS, GraphInfo, GraphTemplate
from ...errors import ArtifactError
from ..batch import StepInputs
from ..sampling.device_draws import Draws
from .device import Device, Resource
from .driver import MEMORY_DEVICE, MEMORY_HOST, Memcpy2D
from .weights import Region, align

ELEMENT_BYTES = 4
"""Of every input: int32 or float32."""
NO_SLOT = -1
"""The slot of a token that is padding: its keys and values are written nowhere."""
TABLE_ROUNDING = 64
"""A template's table may be wider than the longest context needs, up to the next multiple of this."""

_Offsets = dict[str, tuple[int, int]]
"""By input: bytes from the start of the area, and elements."""


def _offsets(info: GraphInfo) -> _Offsets:
    counts = {"tokens": info.tokens, "positions": info.tokens, "slots": info.tokens}
    counts |= {"query_start": info.sequences + 1, "seq_lens": info.sequences}
    counts |= dict.fromkeys(DRAW_INPUTS, info.sequences)
    found: _Offsets = {}
    end = 0
    for name, count in counts.items():
        found[name] = (end, count)
        end = align(end + count * ELEMENT_BYTES)
    return found


class PaddedInputs:
    """The inputs of one graph's size: how to write them into `area`, memory that all sizes share."""

    def __init__(self, info: GraphInfo, width: int, area: NDArray[np.uint8]) -> None:
        views = {
            name: area[at : at + count * ELEMENT_BYTES].view(DRAW_INPUTS.get(name, "int32")) for name, (at, count) in _offsets(info).items()
        }
        self.nbytes = max(at + count * ELEMENT_BYTES for at, count in _offsets(info).values())
        self.width = width
        self._tokens, self._positions, self._slots = views["tokens"], views["positions"], views["slots"]
        self._query_start, self._seq_lens = views["query_start"], views["seq_lens"]
        self._draws = {name: views[name] for name in DRAW_INPUTS}
        self._decode_starts = np.arange(info.sequences + 1, dtype=np.int32) if info.kind == "decode" else None

    def write(self, inputs: StepInputs, draws: Draws | None) -> None:
        """Padded tokens have no slot. Padded sequences are empty; in a decode graph they still have their one token.

        Sequences without a draw, padded ones too, get the temperature 0 and keep what was there of the rest, which nobody reads then.
        """
        tokens, sequences = len(inputs.tokens), len(inputs.seq_lens)
        self._tokens[:tokens], self._tokens[tokens:] = inputs.tokens, 0
        self._positions[:tokens], self._positions[tokens:] = inputs.positions, 0
        self._slots[:tokens], self._slots[tokens:] = inputs.slots, NO_SLOT
        self._seq_lens[:sequences], self._seq_lens[sequences:] = inputs.seq_lens, 0
        if self._decode_starts is not None:
            self._query_start[:] = self._decode_starts
        else:
            self._query_start[: sequences + 1], self._query_start[sequences + 1 :] = inputs.query_start, tokens
        self._draws["temperature"][:] = 0
        if draws is not None:
            for name, values in self._draws.items():
                values[draws.rows] = getattr(draws, name)


class InputArea:
    """Memory for the inputs of any of these graphs, here and on the GPU. max_width: blocks of the longest sequence.

    Rows of the block table that belong to no sequence keep what was there: numbers of blocks, which nobody reads.
    """

    def __init__(self, device: Device, infos: list[GraphInfo], max_width: int, stream: Resource, held: ExitStack) -> None:
        self._driver, self._stream = device.driver, stream
        self._max_width = max_width
        rows = max(info.sequences for info in infos)
        small = max(align(at + count * ELEMENT_BYTES) for info in infos for at, count in _offsets(info).values())
        table = rows * -(-max_width // TABLE_ROUNDING) * TABLE_ROUNDING * ELEMENT_BYTES
        hint = "lower --max-num-seqs or --max-batch-tokens"
        self._host = held.enter_context(device.pinned(small))
        self._table_host = held.enter_context(device.pinned(table))
        self._table = self._table_host.bytes.view(np.int32)
        self._address = held.enter_context(device.allocate(small, "the inputs of a step", hint=hint)).handle
        self._table_region = Region(held.enter_context(device.allocate(table, "the block tables", hint=hint)).handle, table)
        self._driver.call("cuMemsetD8Async", self._table_region.address, 0, table, stream.handle)
        self._copy = Memcpy2D(srcMemoryType=MEMORY_HOST, dstMemoryType=MEMORY_DEVICE)
        self._copy.srcHost, self._copy.dstDevice = self._table_host.handle, self._table_region.address

    def regions(self, info: GraphInfo) -> dict[str, Region]:
        """Where a graph finds its inputs, by the name of the base."""
        small = {f"input:{name}": Region(self._address + at, count * ELEMENT_BYTES) for name, (at, count) in _offsets(info).items()}
        return small | {"input:block_table": self._table_region}

    def padded(self, info: GraphInfo, template: GraphTemplate) -> PaddedInputs:
        """What writes the inputs of this graph. Raises ArtifactError if its block table is too narrow for a sequence, or does not fit."""
        width = template.table_width
        if width < self._max_width or width * info.sequences * ELEMENT_BYTES > self._table_region.nbytes:
            raise ArtifactError(
                f"{info.file} has block tables of width {width}, but a sequence has up to {self._max_width} blocks",
                hint="build the artifact again",
            )
        return PaddedInputs(info, width, self._host.bytes)

    def send(self, padded: PaddedInputs, inputs: StepInputs, draws: Draws | None) -> None:
        """Begin to copy the inputs of a step; the stream must be done with the step before it."""
        padded.write(inputs, draws)
        sequences, width = inputs.block_table.shape
        np.copyto(self._table[: sequences * width].reshape(sequences, width), inputs.block_table)
        copy = self._copy
        copy.srcPitch = copy.WidthInBytes = width * ELEMENT_BYTES
        copy.dstPitch, copy.Height = padded.width * ELEMENT_BYTES, sequences
        self._driver.call("cuMemcpyHtoDAsync_v2", self._address, self._host.handle, padded.nbytes, self._stream.handle)
        self._driver.call("cuMemcpy2DAsync_v2", ctypes.byref(copy), self._stream.handle)
