"""One problem of `engine tune` on the GPU: its operands in memory, and each candidate as a graph that is timed.

A graph launches its candidate several times, each time over another copy of what is streamed:
the real model comes back to the same weights only after all others, and finds none of them in a cache.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..artifacts.graph import WORKSPACE, GraphTemplate, Node, Place
from ..artifacts.launch_plan import Location, PlanCandidate, PlanKernel, PlanProblem, evaluate, holds
from ..runtime.cuda.device import Device, Resource
from ..runtime.cuda.graphs import instantiate
from ..runtime.cuda.kernels import Kernels
from ..runtime.cuda.random_numbers import fill_random
from ..runtime.cuda.region import Region, align
from ..runtime.cuda.timing import graph_seconds

STREAMED_BYTES = 256 << 20
"""Copies of an operand are so many together: several times the largest cache."""
MOST_COPIES = 16
LEAST_LAUNCHES = 4
"""Of a candidate in one graph, so that what starting the graph takes is shared."""
_OUT = "out"
_TOLERANCE = 0.02
"""Results may be that much of their largest number apart: other orders of sums, rounded to 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What sizes mean. context: tokens of a sequence in decode steps. block_size: tokens of a KV block."""

    context: int
    block_size: int

    def dimensions(self, problem: PlanProblem, size: int) -> dict[str, int]:
        """The values of a problem's dimensions at a size."""
        given = {"size": size, "table": -(-self.length(problem, size) // self.block_size)}
        return given | {name: evaluate(value, given) for name, value in problem.dimensions.items()}

    def length(self, problem: PlanProblem, size: int) -> int:
        """Tokens of each sequence."""
        return size if problem.kind == "prefill" else self.context


class Bench:
    """A problem's operands on the GPU, for any of `sizes`. A context manager: its memory goes at the end."""

    def __init__(
        self, device: Device, stream: Resource, problem: PlanProblem, setting: Setting, sizes: Sequence[int], held: ExitStack
    ) -> None:
        self._device, self._stream, self._problem, self._setting = device, stream, problem, setting
        self._held = held
        every = [setting.dimensions(problem, size) for size in sizes]
        self._regions = {_OUT: self._allocate(max(evaluate(problem.out_bytes, dims) for dims in every))}
        for operand in problem.operands:
            counts = [evaluate(operand.bytes, dims) for dims in every]
            self._regions[operand.name] = self._allocate(
                max(_stride(nbytes) * (_copies(nbytes) if operand.streamed else 1) for nbytes in counts)
            )
        numbers = {operand.name: operand.dtype for operand in problem.operands if operand.content == "numbers"}
        fill_random(device, stream, self._regions, numbers)

    @classmethod
    def open(cls, device: Device, stream: Resource, problem: PlanProblem, setting: Setting, sizes: Sequence[int]) -> "Bench":
        """Raises DeviceError if the GPU's memory does not hold it."""
        with ExitStack() as held:
            bench = cls(device, stream, problem, setting, sizes, held)
            bench._held = held.pop_all()
        return bench

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._held.close()

    def set_size(self, size: int) -> None:
        """Write what says where sequences are, and which experts the tokens chose."""
        dims = self._setting.dimensions(self._problem, size)
        for operand in self._problem.operands:
            if operand.routes is not None:
                self._write(operand.name, random_order(size, *operand.routes))
            elif operand.content != "numbers":
                length = self._setting.length(self._problem, size)
                self._write(operand.name, _list(operand.content, evaluate(operand.bytes, dims) // 4, size, length))

    def seconds(self, candidate: PlanCandidate, kernels: Kernels, plan_kernels: Sequence[PlanKernel], size: int, runs: int) -> float:
        """Median of the time of one launch. Raises DeviceError for one that fails."""
        template, launches, workspace = self._template(candidate, plan_kernels, kernels, size)
        with ExitStack() as held:
            hint = "free memory of the GPU"
            memory = held.enter_context(self._device.allocate(workspace, "a candidate's intermediate results", hint=hint))
            regions = {**self._regions, WORKSPACE: Region(memory.handle, workspace)}
            graph = held.enter_context(instantiate(self._device, template, kernels, regions))
            held.callback(self._device.driver.function("cuStreamSynchronize"), self._stream.handle)
            return statistics.median(graph_seconds(self._device, self._stream, graph.handle, runs)) / launches

    def clear_result(self) -> None:
        """So that nothing is taken for a result that is none: all bits set, which is NaN."""
        region = self._regions[_OUT]
        self._device.driver.call("cuMemsetD8Async", region.address, 0xFF, region.nbytes, self._stream.handle)

    def result(self, size: int) -> NDArray[np.float32]:
        """What the last candidate left."""
        nbytes = evaluate(self._problem.out_bytes, self._setting.dimensions(self._problem, size))
        with self._device.pinned(nbytes) as ours:
            self._device.driver.call("cuMemcpyDtoHAsync_v2", ours.handle, self._regions[_OUT].address, nbytes, self._stream.handle)
            self._device.driver.call("cuStreamSynchronize", self._stream.handle)
            raw = ours.bytes.copy()
        if self._problem.out_dtype == "bfloat16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return raw.view(self._problem.out_dtype).astype(np.float32)

    def _template(
        self, candidate: PlanCandidate, plan_kernels: Sequence[PlanKernel], kernels: Kernels, size: int
    ) -> tuple[GraphTemplate, int, int]:
        """The graph, how often it launches the candidate, and the bytes of its workspace."""
        problem, dims = self._problem, self._setting.dimensions(self._problem, size)
        copies = {operand.name: _copies(evaluate(operand.bytes, dims)) for operand in problem.operands if operand.streamed}
        strides = {operand.name: _stride(evaluate(operand.bytes, dims)) for operand in problem.operands}
        names = [*(operand.name for operand in problem.operands), _OUT]
        starts, workspace = _starts(candidate, dims)
        numbers = {kernel.file: number for number, kernel in enumerate(kernels.infos)}
        nodes = []
        launches = max(LEAST_LAUNCHES, *copies.values(), 0)

        def place(location: Location, repeat: int) -> Place:
            offset = evaluate(location.offset, dims)
            if location.buffer >= len(names):
                return Place(base=len(names), offset=starts[location.buffer - len(names)] + offset)
            name = names[location.buffer]
            return Place(base=location.buffer, offset=offset + (repeat % copies[name] * strides[name] if name in copies else 0))

        for repeat in range(launches):
            for launch in candidate.launches:
                if not all(holds(guard, dims) for guard in launch.when):
                    continue
                kernel = plan_kernels[launch.kernel]
                x, y, z = (evaluate(number, dims) for number in launch.grid)
                given = [place(each, repeat) if isinstance(each, Location) else evaluate(each, dims) for each in launch.arguments]
                hidden: list[Place | int] = [0] * (len(kernel.parameters) - len(given))
                if kernel.scratch_bytes:
                    hidden[0] = Place(base=len(names), offset=workspace)
                    workspace += align(kernel.scratch_bytes * prod((x, y, z)))
                nodes.append(Node(kernel=numbers[kernel.file], grid=(x, y, z), arguments=[*given, *hidden]))
        template = GraphTemplate(bases=[*names, WORKSPACE], nodes=nodes, outputs={})
        return template, launches, max(workspace, 1)

    def _allocate(self, nbytes: int) -> Region:
        hint = "free memory of the GPU, or tune with a shorter --context"
        memory = self._held.enter_context(self._device.allocate(nbytes, f"the operands of {self._problem.name}", hint=hint))
        return Region(memory.handle, nbytes)

    def _write(self, name: str, numbers: NDArray[np.int32]) -> None:
        with self._device.pinned(numbers.nbytes) as ours:
            ours.bytes[:] = numbers.view(np.uint8)
            self._device.driver.call("cuMemcpyHtoDAsync_v2", self._regions[name].address, ours.handle, numbers.nbytes, self._stream.handle)
            self._device.driver.call("cuStreamSynchronize", self._stream.handle)


def agree(result: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether two results are the same but for the order of sums and what tiles round; never where one holds what is no number."""
    largest = float(np.abs(expected).max(initial=0.0))
    return bool(
        np.isfinite(expected).all() and np.isfinite(result).all() and np.abs(result - expected).max(initial=0.0) <= _TOLERANCE * largest
    )


def _starts(candidate: PlanCandidate, dims: Mapping[str, int]) -> tuple[list[int], int]:
    """Where each of a candidate's own buffers begins in the workspace, and where they end."""
    starts, end = [], 0
    for size in candidate.buffers:
        starts.append(end)
        end += align(evaluate(size, dims))
    return starts, end


def _list(content: str, count: int, size: int, length: int) -> NDArray[np.int32]:
    """cu_seqlens of one sequence, lengths of sequences, or a block table in which no two sequences share a block."""
    match content:
        case "starts":
            return np.array([0, size], np.int32)
        case "lengths":
            return np.full(count, length, np.int32)
    return np.random.default_rng(0).permutation(count).astype(np.int32)


def random_order(tokens: int, experts: int, chosen: int) -> NDArray[np.int32]:
    """The pairs of tokens that choose by chance, as `sort_routes` has them (kernels/moe/reference.py): int32 [E + 1 + 2 P]."""
    choices = np.random.default_rng(0).random((tokens, experts)).argsort(axis=1)[:, :chosen].reshape(-1)
    pairs = choices.argsort(kind="stable")
    begins = np.searchsorted(choices[pairs], np.arange(experts + 1))
    return np.concatenate([begins, pairs // chosen, pairs.argsort()]).astype(np.int32)


def _copies(nbytes: int) -> int:
    return min(MOST_COPIES, max(1, -(-STREAMED_BYTES // max(1, nbytes))))


def _stride(nbytes: int) -> int:
    return align(max(1, nbytes))
