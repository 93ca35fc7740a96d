"""What a step leaves on the GPU, and how it comes back: every row's token always, whole rows of logits when somebody asks."""

import math
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from ...artifacts.graph import WORKSPACE, GraphInfo, GraphTemplate
from ...errors import ArtifactError
from .device import Device, Resource
from .region import Region

_BYTES = 4
"""Of a float32 and of an int32."""


class DeviceLogits:
    """A step's logits. They stay on the GPU until the next step begins; `logits[row]` fetches one row [V] float32."""

    def __init__(self, outputs: "OutputArea", address: int, tokens: list[int]) -> None:
        self._outputs, self._address, self._step = outputs, address, outputs.steps
        self._tokens = tokens

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        assert self._step == self._outputs.steps, "the next step has overwritten these logits"
        if not 0 <= row < len(self._tokens):
            raise IndexError(row)
        return self._outputs.fetch_row(self._address, row)

    def tokens(self, rows: Sequence[int]) -> list[int]:
        """What the graph has chosen for these rows."""
        return [self._tokens[row] for row in rows]


class Results:
    """Where one graph leaves its results: logits [R, V] float32 and tokens [R] int32, R the graph's rows."""

    def __init__(self, info: GraphInfo, template: GraphTemplate, workspace: Region, vocab_size: int) -> None:
        wanted = {"logits": ("float32", [info.rows, vocab_size]), "tokens": ("int32", [info.rows])}
        found = {name: (output.dtype, output.shape) for name, output in template.outputs.items()}
        if found != wanted:
            raise ArtifactError(f"{info.file} has the outputs {found}, wanted are {wanted}", hint="build the artifact again")
        self.logits, self.tokens = (self._address(info, template, workspace, name, math.prod(shape)) for name, (_, shape) in wanted.items())

    @staticmethod
    def _address(info: GraphInfo, template: GraphTemplate, workspace: Region, name: str, elements: int) -> int:
        place = template.outputs[name].place
        bases = template.bases
        if bases[place.base : place.base + 1] != [WORKSPACE] or not 0 <= place.offset <= workspace.nbytes - elements * _BYTES:
            raise ArtifactError(f"{info.file} has its {name} outside of the workspace", hint="build the artifact again")
        return workspace.address + place.offset


class OutputArea:
    """Pinned memory for what comes back. steps: how many have been collected."""

    def __init__(self, device: Device, rows: int, vocab_size: int, stream: Resource, held: ExitStack) -> None:
        self._driver, self._stream = device.driver, stream
        self._vocab_size = vocab_size
        self._row = held.enter_context(device.pinned(vocab_size * _BYTES))
        self._tokens = held.enter_context(device.pinned(rows * _BYTES))
        self.steps = 0

    def collect(self, results: Results, rows: int) -> DeviceLogits:
        """Wait for the step that has been begun. Raises DeviceError if it failed."""
        self.steps += 1
        self._copy(self._tokens.handle, results.tokens, rows * _BYTES)
        return DeviceLogits(self, results.logits, self._tokens.bytes.view(np.int32)[:rows].tolist())

    def fetch_row(self, logits: int, row: int) -> NDArray[np.float32]:
        nbytes = self._vocab_size * _BYTES
        self._copy(self._row.handle, logits + row * nbytes, nbytes)
        return self._row.bytes.view(np.float32).copy()

    def _copy(self, to: int, address: int, nbytes: int) -> None:
        self._driver.call("cuMemcpyDtoHAsync_v2", to, address, nbytes, self._stream.handle)
        self._driver.call("cuStreamSynchronize", self._stream.handle)
