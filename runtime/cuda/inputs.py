"""A step's inputs, padded to the size of its graph, on their way to the GPU.

All but the block tables lie next to each other, each aligned, in an order and at offsets that only
the graph's size decides: so they go over in one copy. Graphs run one after another and share the
memory.
"""

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from ...artifacts import InputInfo, Manifest
from ...artifacts.graph import DRAW_INPUTS, GraphInfo
from ...artifacts.step_inputs import step_sizes
from ...errors import ArtifactError
from ..batch import StepInputs
from ..sampling.device_sampling import Draws
from .device import Device, Resource
from .driver import MEMORY_DEVICE, MEMORY_HOST, Memcpy2D
from .region import Region, align

ELEMENT_BYTES = 4
"""Of every input: int32 or float32."""
CU_SEQLENS = "cu_seqlens"
SLOT_MAPPING = "slot_mapping."
NO_SLOT = -1
"""The slot of a token that is padding: its keys and values are written nowhere."""
TABLE_ROUNDING = 64
"""A template's table may be wider than the longest context needs, up to the next multiple of this."""
_HINT = "lower --max-num-seqs or --max-batch-tokens"


class _Layout:
    """Where the inputs of one graph's size lie that go over in one copy."""

    def __init__(self, inputs: Sequence[InputInfo], info: GraphInfo) -> None:
        self.offsets: dict[str, tuple[int, int]] = {}
        """By input: bytes from the start, and elements."""
        self.nbytes = 0
        for each in inputs:
            if len(each.dims) == 1:
                self.offsets[each.name] = (align(self.nbytes), info.sizes[each.dims[0]])
                self.nbytes = align(self.nbytes) + info.sizes[each.dims[0]] * ELEMENT_BYTES


class PaddedInputs:
    """The inputs of one graph's size: how to write them into `area`, memory that all sizes share. widths: of the block tables, by input."""

    def __init__(self, inputs: Sequence[InputInfo], info: GraphInfo, area: NDArray[np.uint8]) -> None:
        layout = _Layout(inputs, info)
        dtypes = {each.name: each.dtype for each in inputs}
        views = {name: area[at : at + count * ELEMENT_BYTES].view(dtypes[name]) for name, (at, count) in layout.offsets.items()}
        self.nbytes = layout.nbytes
        self.widths = {each.name: info.sizes[each.dims[1]] for each in inputs if len(each.dims) == 2}
        self._draws = {name: views.pop(name) for name in DRAW_INPUTS}
        self._cu_seqlens = views.pop(CU_SEQLENS)
        self._others = [(name, view, NO_SLOT if name.startswith(SLOT_MAPPING) else 0) for name, view in views.items()]
        self._decode_starts = np.arange(info.sequences + 1, dtype=np.int32) if info.kind == "decode" else None

    def write(self, inputs: StepInputs, draws: Draws | None) -> None:
        """Padded tokens have no slot. Padded sequences are empty; in a decode graph they still have their one token.

        Rows without a draw, padded ones too, get the temperature 0 and keep what was there of the rest, which nobody reads then.
        """
        for name, view, padding in self._others:
            array = inputs.arrays[name]
            view[: len(array)], view[len(array) :] = array, padding
        if self._decode_starts is not None:
            self._cu_seqlens[:] = self._decode_starts
        else:
            starts = inputs.arrays[CU_SEQLENS]
            self._cu_seqlens[: len(starts)], self._cu_seqlens[len(starts) :] = starts, inputs.tokens
        self._draws["temperature"][:] = 0
        if draws is not None:
            for name, values in self._draws.items():
                values[draws.rows] = getattr(draws, name)


class _Table:
    """Memory for one input [S, B], here and on the GPU, `rows` of up to `width` blocks."""

    def __init__(self, device: Device, rows: int, width: int, held: ExitStack) -> None:
        nbytes = rows * -(-width // TABLE_ROUNDING) * TABLE_ROUNDING * ELEMENT_BYTES
        host = held.enter_context(device.pinned(nbytes))
        self._host = host.bytes.view(np.int32)
        self.region = Region(held.enter_context(device.allocate(nbytes, "the block tables", hint=_HINT)).handle, nbytes)
        self._copy = Memcpy2D(srcMemoryType=MEMORY_HOST, dstMemoryType=MEMORY_DEVICE)
        self._copy.srcHost, self._copy.dstDevice = host.handle, self.region.address

    def copy(self, blocks: NDArray[np.int32], width: int) -> Memcpy2D:
        """What copies `blocks` to the GPU, into rows of `width`."""
        rows, own = blocks.shape
        np.copyto(self._host[: rows * own].reshape(rows, own), blocks)
        copy = self._copy
        copy.srcPitch = copy.WidthInBytes = own * ELEMENT_BYTES
        copy.dstPitch, copy.Height = width * ELEMENT_BYTES, rows
        return copy


class InputArea:
    """Memory for the inputs of any of these graphs, here and on the GPU.

    Rows of a block table that belong to no sequence keep what was there: numbers of blocks, which nobody reads.
    """

    def __init__(self, device: Device, manifest: Manifest, infos: list[GraphInfo], stream: Resource, held: ExitStack) -> None:
        self._driver, self._stream = device.driver, stream
        self._inputs = manifest.step.inputs
        rows = max(info.sequences for info in infos)
        self._widths = step_sizes(tokens=1, sequences=rows, rows=1, groups=manifest.caches, max_context=manifest.model.max_context)
        small = max(align(_Layout(self._inputs, info).nbytes) for info in infos)
        self._host = held.enter_context(device.pinned(small))
        self._address = held.enter_context(device.allocate(small, "the inputs of a step", hint=_HINT)).handle
        self._tables = {each.name: _Table(device, rows, self._widths[each.dims[1]], held) for each in self._inputs if len(each.dims) == 2}
        for table in self._tables.values():
            self._driver.call("cuMemsetD8Async", table.region.address, 0, table.region.nbytes, stream.handle)

    def regions(self, info: GraphInfo) -> dict[str, Region]:
        """Where a graph finds its inputs, by the name of the base."""
        offsets = _Layout(self._inputs, info).offsets
        small = {f"input:{name}": Region(self._address + at, count * ELEMENT_BYTES) for name, (at, count) in offsets.items()}
        return small | {f"input:{name}": table.region for name, table in self._tables.items()}

    def padded(self, info: GraphInfo) -> PaddedInputs:
        """What writes the inputs of this graph. Raises ArtifactError if a block table is too narrow for a sequence, or does not fit."""
        for each in self._inputs:
            if len(each.dims) == 1:
                continue
            width, least = info.sizes[each.dims[1]], self._widths[each.dims[1]]
            if width < least or width * info.sequences * ELEMENT_BYTES > self._tables[each.name].region.nbytes:
                raise ArtifactError(
                    f"{info.file} has block tables of width {width}, but a sequence has up to {least} blocks",
                    hint="build the artifact again",
                )
        return PaddedInputs(self._inputs, info, self._host.bytes)

    def send(self, padded: PaddedInputs, inputs: StepInputs, draws: Draws | None) -> None:
        """Begin to copy the inputs of a step; the stream must be done with the step before it."""
        padded.write(inputs, draws)
        self._driver.call("cuMemcpyHtoDAsync_v2", self._address, self._host.handle, padded.nbytes, self._stream.handle)
        for name, table in self._tables.items():
            copy = table.copy(inputs.arrays[name], padded.widths[name])
            self._driver.call("cuMemcpy2DAsync_v2", ctypes.byref(copy), self._stream.handle)
