"""A segment's canonical form to a launch plan.

Operators of ours become the launches that their emitters say. Runs of other operators between
them go through Inductor (islands.py). Views are not computed: they are other places in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from ...artifacts.launch_plan import Guard, LaunchPlan, Location, PlanLaunch
from ...artifacts.tuning import Choice
from ...errors import BuildError
from ...kernels import ops
from ...kernels.nvidia.choices import Problem, Range, UnfitChoice
from ...kernels.nvidia.context import Context
from ...kernels.nvidia.emitters import MODULES, emitter_of, operator_name
from ...kernels.nvidia.launch import Launch, Size, Tensor
from .. import segment_graph
from .cubin import Specialization, compile_kernel, is_multiple, item_bytes, specialize
from .device import HOPPER
from .expression import as_guard, expression
from .islands import lower_island
from .problems import Found

_HINT = 512
"""Example value of every dimension: what Inductor's heuristics see."""
_LARGEST = 2**31 - 1
"""Offsets inside kernels are 32 bits, in elements, where a tensor may have symbolic sizes."""


@dataclass(frozen=True, kw_only=True)
class LoweredForm:
    """A plan, the cubins of its kernels by digest, and for replaying it what each was made from and what Inductor wrote."""

    plan: LaunchPlan
    cubins: dict[str, bytes]
    specializations: list[Specialization]
    sources: dict[str, str]


def lower_form(form: dict[str, Any], scratch: Path, choices: Mapping[str, Choice], *, tunable: bool = False) -> LoweredForm:
    """Lower a form for Hopper. The compile-only device must be installed.

    choices: by problem, what is launched for which sizes (kernels/nvidia/choices.py); others as their policies say.
    tunable: describe all candidates in the plan, and compile them.

    Raises BuildError for an operator without an emitter or a choice that does not fit, and whatever islands and kernels raise.
    """
    ops.define()
    ops.register_fakes()
    builder = _Builder(form, scratch, choices, tunable)
    return builder.finish(builder.run())


@dataclass
class _Builder:
    """Walks a form. `tensors` says where each value lies; buffers are numbered, the inputs first."""

    form: dict[str, Any]
    scratch: Path
    choices: Mapping[str, Choice]
    tunable: bool
    problems: dict[str, Found] = field(default_factory=dict)
    tuned: set[str] = field(default_factory=set)
    tensors: dict[fx.Node, Tensor] = field(default_factory=dict)
    values: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    buffers: list[Size] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    symbols: dict[sympy.Symbol, sympy.Symbol] = field(default_factory=dict)
    islands: int = 0

    def __post_init__(self) -> None:
        self.fake_mode = FakeTensorMode(shape_env=ShapeEnv(specialize_zero_one=False))
        self._dimensions: dict[str, Any] = {}
        self._buffer_of: dict[int, int] = {}
        self.graph = segment_graph.decode(self.form, device="cuda:0").graph

    def run(self) -> list[Tensor]:
        """Lower every node; returns where the outputs lie."""
        for node, described in zip(self.graph.find_nodes(op="placeholder"), self.form["inputs"], strict=True):
            self._add_input(node, *described)
        run: list[fx.Node] = []
        for node in self.graph.nodes:
            if node.op != "call_function":
                continue
            if not str(node.target).startswith("engine."):
                run.append(node)
                continue
            self._flush(run)
            self._emit(node)
        self._flush(run)
        (output,) = self.graph.find_nodes(op="output")
        return [self.tensors[node] for node in output.args[0]]

    def finish(self, outputs: list[Tensor]) -> LoweredForm:
        """The plan of what was lowered."""
        kernels: dict[Specialization, int] = {}
        launches = [self._plan_launch(launch, kernels) for launch in self.launches]
        problems = [found.describe(lambda launch: self._plan_launch(launch, kernels), self._named) for found in self.problems.values()]
        compiled = [compile_kernel(wanted) for wanted in kernels]
        inputs = self.form["inputs"]
        plan = LaunchPlan(
            inputs=[shape for _, shape, *_ in inputs],
            buffers=[expression(size) for size in self.buffers[len(inputs) :]],
            outputs=[self._location(tensor) for tensor in outputs],
            output_shapes=[[expression(self._named(size)) for size in tensor.shape] for tensor in outputs],
            kernels=[kernel for kernel, _ in compiled],
            launches=launches,
            guards=self._guards(),
            problems=problems,
            tuned=sorted(self.tuned),
        )
        cubins = {kernel.cubin: data for kernel, data in compiled}
        return LoweredForm(plan=plan, cubins=cubins, specializations=list(kernels), sources=self.sources)

    def _add_input(self, node: fx.Node, dtype: str, shape: list[Any], strides: list[int] | None = None) -> None:
        sizes = [self._dimension(size) if isinstance(size, str) else size for size in shape]
        with self.fake_mode:
            empty = torch.empty(sizes, dtype=getattr(torch, dtype), device="cuda:0")
            self.values[node] = empty if strides is None else torch.empty_strided(sizes, strides, dtype=empty.dtype, device="cuda:0")
        self._place(node, self._tensor(self.values[node], len(self.buffers)))
        self.buffers.append(0)

    def _dimension(self, name: str) -> Any:
        if name not in self._dimensions:
            env, source = self.fake_mode.shape_env, ConstantSource(name)
            assert env is not None
            symbol = env.create_symbol(_HINT + len(self._dimensions), source, DimDynamic.DYNAMIC, None, do_not_specialize_zero_one=True)
            self.symbols[symbol] = sympy.Symbol(name, integer=True, positive=True)
            self._dimensions[name] = env.create_symintnode(symbol, hint=_HINT + len(self._dimensions), source=source)
        return self._dimensions[name]

    def _allocate(self, dtype: str, shape: tuple[Size, ...]) -> Tensor:
        strides: list[Size] = []
        count: Size = 1
        for size in reversed(shape):
            strides.insert(0, count)
            count = count * size
        self.buffers.append(self._named(count * item_bytes(dtype)))
        return Tensor(buffer=len(self.buffers) - 1, dtype=dtype, shape=tuple(shape), strides=tuple(strides))

    def _tensor(self, value: torch.Tensor, buffer: Any) -> Tensor:
        """Where a fake tensor lies, given the buffer of its storage."""
        return Tensor(
            buffer=buffer,
            dtype=str(value.dtype).removeprefix("torch."),
            shape=tuple(self._size(size) for size in value.shape),
            strides=tuple(self._size(stride) for stride in value.stride()),
            offset=self._size(value.storage_offset()),
        )

    def _size(self, size: Any) -> Size:
        return size if isinstance(size, int) else self._named(size.node.expr)

    def _named(self, size: Any) -> Size:
        """A size in the form's names of dimensions."""
        return size if isinstance(size, int) else sympy.sympify(size).xreplace(self.symbols)

    def _result(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self.values[source])
        with self.fake_mode:
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _emit(self, node: fx.Node) -> None:
        name = operator_name(str(node.target))
        if name not in MODULES:
            raise BuildError(f"the operator {name} has no kernel for NVIDIA")
        value = self._result(node)
        self.values[node] = value
        out = self._allocate(str(value.dtype).removeprefix("torch."), tuple(self._size(size) for size in value.shape))
        self._place(node, out)
        arguments = tuple(self.tensors[arg] if isinstance(arg, fx.Node) else arg for arg in node.args)
        try:
            self.launches += emitter_of(name)(arguments, out, Context(device=HOPPER, allocate=self._allocate, choose=self._choose))
        except UnfitChoice as error:
            hint = "the file given to --tuned was made by another version of Engine: tune again"
            raise BuildError(f"a choice does not fit: {error}", hint=hint) from error

    def _choose(self, problem: Problem) -> Sequence[Range]:
        if self.tunable and problem.name not in self.problems:
            self.problems[problem.name] = Found.of(problem, self.buffers)
        chosen = self.choices.get(problem.name)
        if chosen is None:
            return problem.policy
        self.tuned.add(problem.name)
        return [Range(*each) for each in chosen]

    def _flush(self, run: list[fx.Node]) -> None:
        """Lower the collected ATen operators: views of what there is already at once, all that is computed as one island."""
        computed = []
        for node in run:
            value = self.values[node] = self._result(node)
            if not isinstance(value, torch.Tensor):
                continue
            if (buffer := self._buffer_of.get(_storage(value))) is not None:
                self.tensors[node] = self._tensor(value, buffer)
            elif any(user not in run for user in node.users):
                computed.append(node)
        if computed:
            self._lower_island(_needed(computed, run), computed)
        run.clear()

    def _place(self, node: fx.Node, tensor: Tensor) -> None:
        self.tensors[node] = tensor
        self._buffer_of[_storage(self.values[node])] = tensor.buffer  # type: ignore[assignment]

    def _lower_island(self, nodes: list[fx.Node], outputs: list[fx.Node]) -> None:
        inputs = list(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in nodes))
        for source in inputs:
            place = self.tensors[source]
            if not is_multiple(place.offset * item_bytes(place.dtype), 16):
                raise BuildError(f"{source.name} starts at no multiple of 16 bytes, which Inductor's kernels count on")
        self.islands += 1
        scratch = self.scratch / f"island{self.islands}"
        scratch.mkdir()
        island = lower_island(
            _as_function(nodes, inputs, outputs),
            [self.values[source] for source in inputs],
            [self.tensors[source] for source in inputs],
            fake_mode=self.fake_mode,
            allocate=self._allocate,
            scratch=scratch,
        )
        self.launches += island.launches
        self.sources |= island.sources
        for node, tensor in zip(outputs, island.outputs, strict=True):
            self._place(node, tensor)

    def _plan_launch(self, launch: Launch, kernels: dict[Specialization, int]) -> PlanLaunch:
        wanted = specialize(launch)
        arguments = [
            self._location(value) if isinstance(value := launch.arguments[name], Tensor) else expression(self._named(value))
            for name, _, _ in wanted.parameters
        ]
        x, y, z = (expression(self._named(size)) for size in launch.grid)
        return PlanLaunch(
            kernel=kernels.setdefault(wanted, len(kernels)),
            grid=(x, y, z),
            arguments=arguments,
            when=[Guard(value=expression(self._named(c.value)), minimum=c.minimum, maximum=c.maximum) for c in launch.when],
        )

    def _location(self, tensor: Tensor) -> Location:
        return Location(buffer=tensor.buffer, offset=expression(self._named(tensor.offset * item_bytes(tensor.dtype))))  # type: ignore[arg-type]

    def _guards(self) -> list[Guard]:
        """What sizes must be: small enough for 32-bit offsets, and whatever tracing and Inductor took for granted."""
        sizes = dict.fromkeys(self._named(sympy.prod(tensor.shape)) for tensor in self.tensors.values())
        small = [Guard(value=expression(size), minimum=0, maximum=_LARGEST) for size in sizes if not sympy.sympify(size).is_Integer]
        env = self.fake_mode.shape_env
        assert env is not None
        taken = [guard for asked in env.guards if (guard := as_guard(self._named(asked.expr))) is not None]
        return [*small, *taken]


def _storage(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _needed(outputs: list[fx.Node], run: list[fx.Node]) -> list[fx.Node]:
    """Those nodes of `run`, in order, that `outputs` are computed from."""
    needed = set(outputs)
    for node in reversed(run):
        if node in needed:
            needed.update(source for source in node.all_input_nodes if source in run)
    return [node for node in run if node in needed]


def _as_function(nodes: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node]) -> Callable[..., Sequence[torch.Tensor]]:
    """The nodes as a function of `inputs`."""
    graph = fx.Graph()
    copies = {source: graph.placeholder(f"arg{index}") for index, source in enumerate(inputs)}
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(torch.nn.Module(), graph)
