"""Runs an artifact on an NVIDIA GPU: one CUDA graph per step, made of the artifact's templates.

Nothing here compiles, captures, profiles or warms up. Loading checks that the artifact is whole
and fits this GPU, copies the weights, resolves every address and replays the golden probe.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...artifacts import Manifest, check_code
from ...artifacts.graph import WORKSPACE, GraphInfo
from ...artifacts.manifest import DTYPE_BYTES
from ...errors import ArtifactError
from ..batch import StepInputs
from ..phases import OnPhase, Phases
from ..probe import replay
from ..sampling.device_sampling import Draws
from ..weights import Span, locate_weights
from .block_count import count_blocks, probe_tokens
from .buckets import Buckets
from .device import Device, Resource
from .find_device import find_device
from .inputs import InputArea
from .kv_cache import cache_bytes, cache_regions
from .outputs import DeviceLogits, OutputArea
from .random_numbers import fill_random
from .region import Region
from .step_graphs import StepGraph, StepGraphs
from .weights import Layout, upload


class CudaExecutor:
    """A loaded artifact. `manifest` and `pools` (blocks of each cache group, by name) are read by the scheduler.

    `close` frees what it holds of the GPU; a process that ends need not.
    """

    can_draw = True

    def __init__(
        self,
        manifest: Manifest,
        pools: Mapping[str, int],
        device: Device,
        stream: Resource,
        inputs: InputArea,
        outputs: OutputArea,
        graphs: StepGraphs,
    ) -> None:
        self.manifest = manifest
        self.pools = pools
        self.device = device
        self.graphs = graphs
        self._buckets = Buckets(manifest.graphs)
        self.stream = stream
        self._inputs = inputs
        self._outputs = outputs
        self._held = ExitStack()

    @classmethod
    def load(
        cls,
        directory: Path,
        manifest: Manifest,
        *,
        kv_memory: int | None = None,
        max_num_seqs: int = 1,
        max_batch_tokens: int = 1,
        random_numbers: bool = False,
        on_phase: OnPhase = lambda name, seconds: None,
    ) -> "CudaExecutor":
        """Load an artifact and make it ready to run.

        kv_memory: bytes for the KV cache (default: nine tenths of what weights and the largest
        step leave free). max_num_seqs, max_batch_tokens: of a step. random_numbers: take them
        instead of the artifact's weights, which need not be there, and put them into the KV
        cache: for measuring, with no probe. on_phase(name, seconds) is called as each phase
        ends. Raises ArtifactError or MismatchError for an artifact that is damaged or does not
        fit, UsageError for limits that it has no graphs for, DeviceError for what the driver
        refuses.
        """
        with ExitStack() as held:
            loader = _Loader(directory, manifest, Phases(on_phase), held, random_numbers)
            executor = loader.load(kv_memory, max_num_seqs, max_batch_tokens)
            executor._held = held.pop_all()
        return executor

    def step(self, inputs: StepInputs, draws: Draws | None = None) -> DeviceLogits:
        """Run one forward. Writes the new tokens' keys and values into the cache; releases the GIL meanwhile.

        draws: rows whose token is drawn in the graph; of the others it finds the largest logit.
        Returns the logits [R, V] of the wanted rows, valid until the next step. Raises DeviceError.
        """
        graph = self.prepare(inputs, draws)
        self.device.driver.call("cuGraphLaunch", graph.handle, self.stream.handle)
        return self.collect(graph, inputs.rows)

    def prepare(self, inputs: StepInputs, draws: Draws | None = None) -> StepGraph:
        """Choose the graph of a step and begin to copy its inputs on `stream`. Launching it there runs the step, and again if repeated."""
        self.device.make_current()
        graph = self.graphs[self._buckets.choose(inputs.tokens, inputs.sequences)]
        self._inputs.send(graph.padded, inputs, draws)
        return graph

    def collect(self, graph: StepGraph, rows: int) -> DeviceLogits:
        """Wait for the launched step. Raises DeviceError if it failed."""
        return self._outputs.collect(graph.results, rows)

    def routes(self) -> NDArray[np.int32]:
        """Of no artifact for a GPU."""
        raise AssertionError("artifacts for GPUs do not tell routes")

    def choose(self, logits: DeviceLogits, rows: Sequence[int]) -> list[int]:
        """As `StepExecutor.choose`: the graph has chosen them."""
        return logits.tokens(rows)

    def close(self) -> None:
        self.device.make_current()
        self._held.close()


class _Loader:
    """The stages of loading, over resources that are freed if one of them fails."""

    def __init__(self, directory: Path, manifest: Manifest, clock: Phases, held: ExitStack, random_numbers: bool) -> None:
        self._random_numbers = random_numbers
        self._directory = directory
        self._manifest = manifest
        self._clock = clock
        self._held = held

    def load(self, kv_memory: int | None, max_num_seqs: int, max_batch_tokens: int) -> CudaExecutor:
        device = self._held.enter_context(find_device(self._manifest))
        stream = self._held.enter_context(device.stream())
        self._clock.ended("open_device")
        wanted = self._check(max_num_seqs, max_batch_tokens)
        self._clock.ended("check")
        regions = self._random_weights(device, stream) if self._random_numbers else self._load_weights(device)
        self._clock.ended("load_weights")
        infos = [self._manifest.graphs[number] for number in wanted]
        inputs, outputs = self._make_areas(device, stream, infos)
        regions |= self._allocate_workspace(device, max(info.workspace_bytes for info in infos))
        pools = count_blocks(self._manifest, kv_memory, device.memory()[0], max_batch_tokens=max_batch_tokens)
        caches = self._allocate_cache(device, pools, stream)
        if self._random_numbers:
            dtypes = {tensor: group.dtype for group in self._manifest.caches for tensor in group.tensors}
            fill_random(device, stream, caches, dtypes)
        regions |= caches
        self._clock.ended("allocate_kv")
        graphs = self._held.enter_context(StepGraphs(device, self._directory, self._manifest, inputs, regions))
        self._held.callback(device.driver.function("cuStreamSynchronize"), stream.handle)  # before what a step uses is freed
        first = [info.kind for info in infos].index("mixed") + 1
        graphs.make(wanted[:first])
        self._clock.ended("load_code")
        executor = CudaExecutor(self._manifest, pools, device, stream, inputs, outputs, graphs)
        if not self._random_numbers:
            replay(self._manifest, executor.step, pools)
        self._clock.ended("probe")
        graphs.make_behind(wanted[first:])
        return executor

    def _check(self, max_num_seqs: int, max_batch_tokens: int) -> list[int]:
        """The artifact is whole; the graphs that steps and the probe can take, in the order in which they are wanted."""
        check_code(self._directory, self._manifest)
        if not self._manifest.graphs:
            raise ArtifactError(f"{self._directory} has no graphs", hint="build the artifact again")
        return Buckets(self._manifest.graphs).within(max_num_seqs, max(max_batch_tokens, probe_tokens(self._manifest)))

    def _make_areas(self, device: Device, stream: Resource, infos: list[GraphInfo]) -> tuple[InputArea, OutputArea]:
        rows = max(info.rows for info in infos)
        inputs = InputArea(device, self._manifest, infos, stream, self._held)
        return inputs, OutputArea(device, rows, self._manifest.model.vocab_size, stream, self._held)

    def _load_weights(self, device: Device) -> dict[str, Region]:
        layout = Layout(locate_weights(self._directory, self._manifest))
        address = self._allocate_weights(device, layout)
        upload(device, layout, address)
        return {f"weight:{name}": region for name, region in layout.regions(address).items()}

    def _random_weights(self, device: Device, stream: Resource) -> dict[str, Region]:
        weights = self._manifest.weights
        nowhere = {name: math.prod(info.shape) * DTYPE_BYTES[info.dtype] for name, info in weights.items()}
        layout = Layout({name: Span(self._directory, 0, nbytes) for name, nbytes in nowhere.items()})
        regions = layout.regions(self._allocate_weights(device, layout))
        fill_random(device, stream, regions, {name: info.dtype for name, info in weights.items()})
        return {f"weight:{name}": region for name, region in regions.items()}

    def _allocate_weights(self, device: Device, layout: Layout) -> int:
        smaller = ", or build the artifact with smaller weights (--quantize)" if self._manifest.has_wide_weights else ""
        hint = f"free memory of the GPU{smaller}"
        return self._held.enter_context(device.allocate(layout.nbytes, "the weights", hint=hint)).handle

    def _allocate_workspace(self, device: Device, nbytes: int) -> dict[str, Region]:
        hint = "lower --max-batch-tokens, or free memory of the GPU"
        memory = self._held.enter_context(device.allocate(nbytes, "the activations of a step", hint=hint))
        return {WORKSPACE: Region(memory.handle, nbytes)}

    def _allocate_cache(self, device: Device, pools: Mapping[str, int], stream: Resource) -> dict[str, Region]:
        nbytes = cache_bytes(self._manifest.caches, pools)
        memory = self._held.enter_context(device.allocate(nbytes, "the KV cache's blocks", hint="give less with --kv-memory"))
        device.driver.call("cuMemsetD8Async", memory.handle, 0, nbytes, stream.handle)
        return cache_regions(self._manifest.caches, pools, memory.handle)
