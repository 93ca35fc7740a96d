"""Graph templates: the program and its launch plans, made concrete for each bucket."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from ...artifacts import CacheGroup, Call
from ...artifacts.graph import RESULT_DTYPES, WORKSPACE, GraphTemplate, KernelInfo, Kind, Node, Output, Place
from ...artifacts.launch_plan import LaunchPlan, Location, PlanKernel, evaluate, holds
from ...artifacts.step_inputs import step_sizes
from ...errors import BuildError
from ..partition import Partition
from .workspace import assign_offsets

DECODE_SEQUENCES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MIXED_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048)
_QUERY_LENGTH = "Q"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A size of step. sizes: of every dimension of its inputs."""

    kind: Kind
    sizes: dict[str, int]

    @property
    def tokens(self) -> int:
        return self.sizes["T"]

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.tokens}"


def buckets(groups: Sequence[CacheGroup], max_context: int) -> list[Bucket]:
    """Every size for which an artifact has a graph: decode by sequences, mixed by tokens. Every sequence may have a row of logits."""

    def bucket(kind: Kind, tokens: int, sequences: int) -> Bucket:
        sizes = step_sizes(tokens=tokens, sequences=sequences, rows=sequences, groups=groups, max_context=max_context)
        return Bucket(kind=kind, sizes=sizes)

    decode = [bucket("decode", count, count) for count in DECODE_SEQUENCES]
    return decode + [bucket("mixed", count, min(count, max(DECODE_SEQUENCES))) for count in MIXED_TOKENS]


class KernelTable:
    """The artifact's kernels, each once."""

    def __init__(self, plans: Mapping[str, LaunchPlan]) -> None:
        by_cubin = {kernel.cubin: kernel for plan in plans.values() for kernel in plan.kernels}
        self.kernels: list[KernelInfo] = [kernel.info() for _, kernel in sorted(by_cubin.items())]
        self.index = {cubin: index for index, cubin in enumerate(sorted(by_cubin))}


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A tensor of the step: in a base by name, or in a buffer by number; `offset` in bytes."""

    base: str | int
    offset: int
    shape: list[int] | None


@dataclass
class _Step:
    """One bucket's launches while they are collected. `sizes`: bytes of every buffer; `touched`: first and last launch."""

    bucket: Bucket
    table: KernelTable
    values: dict[str, _Value]
    sizes: dict[int, int] = field(default_factory=dict)
    touched: dict[int, tuple[int, int]] = field(default_factory=dict)
    launches: list[tuple[int, tuple[int, int, int], list[_Value | int]]] = field(default_factory=list)

    def run(self, call: Call, plan: LaunchPlan) -> None:
        """Add a call's launches, and name its outputs."""
        inputs = [self._value(name) for name in call.inputs]
        dimensions = self._bind(call, plan, inputs)
        for guard in plan.guards:
            if not holds(guard, dimensions):
                limits = f"{guard.minimum}..{'' if guard.maximum is None else guard.maximum}"
                raise BuildError(
                    f"the code that makes {', '.join(call.outputs)} does not hold for {self.bucket.name}: {guard.value} is outside {limits}"
                )
        places = [*inputs, *(self._new_buffer(evaluate(size, dimensions)) for size in plan.buffers)]

        def locate(location: Location) -> _Value:
            held = places[location.buffer]
            return _Value(base=held.base, offset=held.offset + evaluate(location.offset, dimensions), shape=None)

        for launch in plan.launches:
            if not all(holds(guard, dimensions) for guard in launch.when):
                continue
            grid = tuple(evaluate(size, dimensions) for size in launch.grid)
            arguments = [locate(arg) if isinstance(arg, Location) else evaluate(arg, dimensions) for arg in launch.arguments]
            arguments += self._hidden(plan.kernels[launch.kernel], prod(grid), len(arguments))
            self._touch([arg.base for arg in arguments if isinstance(arg, _Value)])
            self.launches.append((self.table.index[plan.kernels[launch.kernel].cubin], grid, arguments))  # type: ignore[arg-type]
        for name, location, shape in zip(call.outputs, plan.outputs, plan.output_shapes, strict=True):
            place = locate(location)
            self.values[name] = _Value(base=place.base, offset=place.offset, shape=[evaluate(size, dimensions) for size in shape])

    def _hidden(self, kernel: PlanKernel, blocks: int, given: int) -> list[_Value | int]:
        """Triton's own parameters."""
        scratch = [self._new_buffer(kernel.scratch_bytes * blocks)] if kernel.scratch_bytes else []
        return [*scratch, *[0] * (len(kernel.parameters) - given - len(scratch))]

    def keep(self, name: str) -> None:
        """A result must outlive the last launch."""
        self._touch([self.values[name].base])

    def _value(self, name: str) -> _Value:
        return self.values.get(name) or _Value(base=name, offset=0, shape=None)

    def _bind(self, call: Call, plan: LaunchPlan, inputs: Sequence[_Value]) -> dict[str, int]:
        dimensions = {_QUERY_LENGTH: 1 if self.bucket.kind == "decode" else max(2, self.bucket.tokens)}
        for name, value, shape in zip(call.inputs, inputs, plan.inputs, strict=True):
            for have, want in zip(value.shape or (), shape, strict=False):
                if isinstance(want, str) and dimensions.setdefault(want, have) == have:
                    continue
                if want != have:
                    raise BuildError(f"{name} has the shape {value.shape}, but the code that makes {', '.join(call.outputs)} takes {shape}")
        return dimensions

    def _new_buffer(self, size: int) -> _Value:
        self.sizes[len(self.sizes)] = size
        return _Value(base=len(self.sizes) - 1, offset=0, shape=None)

    def _touch(self, bases: Sequence[str | int]) -> None:
        now = len(self.launches)
        for base in bases:
            if isinstance(base, int):
                self.touched[base] = (self.touched.get(base, (now, now))[0], now)


def make_template(parts: Partition, plans: Mapping[str, LaunchPlan], table: KernelTable, bucket: Bucket) -> tuple[GraphTemplate, int]:
    """A bucket's template, and the bytes of workspace that it wants.

    plans: by segment key. Raises BuildError if a plan does not hold for this size.
    """
    shapes = {f"input:{info.name}": [bucket.sizes[dim] for dim in info.dims] for info in parts.inputs}
    step = _Step(bucket, table, {name: _Value(base=name, offset=0, shape=shape) for name, shape in shapes.items()})
    for call in parts.calls:
        step.run(call, plans[call.target])
    for name in parts.results.values():
        step.keep(name)
    offsets, workspace = assign_offsets(step.sizes, step.touched)
    bases = [WORKSPACE]
    numbers: dict[str, int] = {WORKSPACE: 0}

    def place(value: _Value) -> Place:
        if isinstance(value.base, int):
            return Place(base=0, offset=offsets[value.base] + value.offset)
        if value.base not in numbers:
            numbers[value.base] = len(bases)
            bases.append(value.base)
        return Place(base=numbers[value.base], offset=value.offset)

    nodes = [
        Node(kernel=kernel, grid=grid, arguments=[*(place(arg) if isinstance(arg, _Value) else arg for arg in arguments)])
        for kernel, grid, arguments in step.launches
    ]
    results = {
        role: Output(place=place(step.values[name]), dtype=RESULT_DTYPES[role], shape=step.values[name].shape or [])
        for role, name in parts.results.items()
    }
    return GraphTemplate(bases=bases, nodes=nodes, outputs=results), workspace
