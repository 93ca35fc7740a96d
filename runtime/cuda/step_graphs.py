"""The graphs of an artifact, made one by one: the small ones before the first request, the rest beside the first ones."""

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ...artifacts import Manifest
from ...artifacts.graph import WORKSPACE, GraphTemplate, load_template
from .device import Device
from .graphs import instantiate
from .inputs import InputArea, PaddedInputs
from .kernels import Kernels
from .outputs import Results
from .region import Region


class StepGraph(NamedTuple):
    """What a step of one size needs. handle: for `cuGraphLaunch`."""

    handle: int
    padded: PaddedInputs
    results: Results


class StepGraphs:
    """Graphs by their number in the manifest. regions: weights, KV cache and workspace by the names of their bases.

    seconds: how long each took to make; the first ones also loaded code.

    What is not there yet is made when it is asked for: a step's graph never depends on how long
    the server has been running, and so neither do its tokens. `make_behind` makes graphs in a
    thread of its own rather than between steps: the time goes into the driver, which runs without
    the GIL while the GPU computes, and no step of anybody waits for a graph that it does not take.
    """

    def __init__(self, device: Device, directory: Path, manifest: Manifest, inputs: InputArea, regions: Mapping[str, Region]) -> None:
        self._device = device
        self._directory = directory
        self._manifest = manifest
        self._inputs = inputs
        self._regions = regions
        self._held = ExitStack()
        self.kernels = Kernels(device, directory, manifest.kernels, self._held)
        self.seconds: dict[int, float] = {}
        self._graphs: dict[int, StepGraph] = {}
        self._making = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def __getitem__(self, number: int) -> StepGraph:
        """The graph, made now if need be. Raises ArtifactError or DeviceError, also for one that failed in the background."""
        if self._failure is not None:
            raise self._failure
        return self._graphs.get(number) or self._make(number)

    @property
    def made(self) -> set[int]:
        return set(self._graphs)

    def make(self, numbers: Iterable[int]) -> None:
        """Make these now."""
        for number in numbers:
            self._make(number)

    def make_behind(self, numbers: Iterable[int]) -> None:
        """Make these in the background, in this order."""
        self._thread = threading.Thread(target=self._make_all, args=(list(numbers),), name="make-graphs", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until everything is made that `make_behind` was given, or has failed."""
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop making graphs, and free those there are."""
        self._closing.set()
        self.wait()
        self._held.close()

    def _make_all(self, numbers: list[int]) -> None:
        try:
            self._device.make_current()
            for number in numbers:
                if self._closing.is_set():
                    return
                self._make(number)
        except Exception as error:
            self._failure = error

    def _make(self, number: int) -> StepGraph:
        with self._making:
            if number not in self._graphs:
                begin = time.perf_counter()
                self._graphs[number] = self._instantiate(number)
                self.seconds[number] = time.perf_counter() - begin
            return self._graphs[number]

    def resolve(self, number: int) -> tuple[GraphTemplate, dict[str, Region]]:
        """A graph's template, and where each of its bases lies. Raises ArtifactError for a template that is damaged."""
        info = self._manifest.graphs[number]
        assert info.workspace_bytes <= self._regions[WORKSPACE].nbytes, f"{info.file} is for larger steps than there is memory for"
        workspace = Region(self._regions[WORKSPACE].address, info.workspace_bytes)
        regions = {**self._regions, **self._inputs.regions(info), WORKSPACE: workspace}
        return load_template(self._directory / info.file), regions

    def _instantiate(self, number: int) -> StepGraph:
        info = self._manifest.graphs[number]
        template, regions = self.resolve(number)
        padded = self._inputs.padded(info)
        results = Results(info, template, regions[WORKSPACE], self._manifest.model.vocab_size)
        graph = self._held.enter_context(instantiate(self._device, template, self.kernels, regions))
        return StepGraph(graph.handle, padded, results)
