"""A launch plan: a segment for NVIDIA as data.

Kernels, buffers and an ordered list of launches; sizes and grids are expressions in the
segment's symbolic dimensions. From plans the build makes the graph template of each bucket.

An expression is a number, the name of a dimension, or [operator, left, right] with integers:
"+", "*", "//" (rounded down), "%", "min", "max".
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import ArtifactError
from .graph import KernelInfo, Parameter
from .json_file import read_json
from .numbers import Index, SharedBytes, Threads
from .tuning import Choice

Expression = int | str | list[Any]
_DEEPEST = 100
"""Operators within operators, of an expression."""

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "*": lambda left, right: left * right,
    "//": lambda left, right: left // right,
    "%": lambda left, right: left % right,
    "min": min,
    "max": max,
}


def evaluate(expression: Expression, dimensions: Mapping[str, int]) -> int:
    """The expression's value. Raises ArtifactError for one that is not as above."""
    match expression:
        case int() if not isinstance(expression, bool):
            return expression
        case str() if expression in dimensions:
            return dimensions[expression]
        case [str() as operator, left, right] if operator in _OPERATORS:
            operands = evaluate(left, dimensions), evaluate(right, dimensions)
            if operands[1] != 0 or operator not in ("//", "%"):
                return int(_OPERATORS[operator](*operands))
    raise ArtifactError(f"a launch plan has an expression that cannot be evaluated: {expression!r}", hint="build the artifact again")


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PlanKernel(_Struct, frozen=True, kw_only=True):
    """A compiled kernel: its cubin by SHA-256, and what a launch must know of it.

    parameters: those that a launch gives, then Triton's own, of which the first is memory for all
    blocks of the launch where each wants `scratch_bytes`. The others are null.
    """

    cubin: str
    function: str
    threads: Threads
    shared_bytes: SharedBytes
    parameters: list[Parameter]
    registers: Index
    stack_bytes: Index
    scratch_bytes: Index = 0

    @property
    def file(self) -> str:
        """Where an artifact has the cubin."""
        return f"kernels/{self.cubin[:32]}.cubin"

    def info(self) -> KernelInfo:
        """As the manifest lists it."""
        return KernelInfo(
            file=self.file,
            function=self.function,
            threads=self.threads,
            shared_bytes=self.shared_bytes,
            parameters=self.parameters,
            registers=self.registers,
            stack_bytes=self.stack_bytes,
        )


class Location(_Struct, frozen=True, kw_only=True):
    """Bytes from the start of one of the plan's buffers."""

    buffer: Index
    offset: Expression = 0


class Guard(_Struct, frozen=True, kw_only=True):
    """minimum <= value <= maximum (None: no bound)."""

    value: Expression
    minimum: int
    maximum: int | None


class PlanLaunch(_Struct, frozen=True, kw_only=True):
    """One launch; in steps where a guard of `when` does not hold it is left out."""

    kernel: Index
    grid: tuple[Expression, Expression, Expression]
    arguments: list[Location | Expression]
    when: list[Guard] = []


class PlanOperand(_Struct, frozen=True, kw_only=True):
    """Memory that a candidate reads, and what a tuner puts there (see kernels/nvidia/choices.py)."""

    name: str
    bytes: Expression
    dtype: str
    content: Literal["numbers", "starts", "lengths", "blocks", "routes"]
    streamed: bool
    routes: tuple[Index, Index] | None = None


class PlanCandidate(_Struct, frozen=True, kw_only=True):
    """One way to do a problem's work, for sizes from `least` to `most`.

    Its buffers are the operands, the result, and then `buffers`, bytes each.
    """

    name: str
    least: int
    most: int | None
    buffers: list[Expression]
    launches: list[PlanLaunch]

    def covers(self, first: int, last: int | None) -> bool:
        return self.least <= first and (self.most is None or (last is not None and last <= self.most))


class PlanProblem(_Struct, frozen=True, kw_only=True):
    """Work that can be cut in several ways, for `engine tune`: only in plans that were built to be tuned.

    kind: `rows` of a matrix, sequences with one new token each (`decode`), tokens of one sequence
    (`prefill`). dimensions: their values in `size` and `table`, blocks of a sequence. policy: what is launched without
    measurements.
    """

    name: str
    kind: Literal["rows", "decode", "prefill"]
    dimensions: dict[str, Expression]
    operands: list[PlanOperand]
    out_bytes: Expression
    out_dtype: str
    policy: Choice
    candidates: list[PlanCandidate]


class LaunchPlan(_Struct, frozen=True, kw_only=True):
    """inputs: shape of every input, the first buffers. buffers: bytes of all others. outputs: where each result lies.

    guards: what the sizes must be for the code to be right. Dimensions are those of the inputs'
    shapes, and `Q`, the largest number of new tokens of one sequence. problems: what can be tuned. tuned: names of those whose
    candidates a file of `engine tune` chose.
    """

    inputs: list[list[Expression]]
    buffers: list[Expression]
    outputs: list[Location]
    output_shapes: list[list[Expression]]
    kernels: list[PlanKernel]
    launches: list[PlanLaunch]
    guards: list[Guard]
    problems: list[PlanProblem] = []
    tuned: list[str] = []

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def holds(guard: Guard, dimensions: Mapping[str, int]) -> bool:
    """Whether sizes are within a guard's bounds."""
    value = evaluate(guard.value, dimensions)
    return guard.minimum <= value and (guard.maximum is None or value <= guard.maximum)


def load_plan(path: Path) -> LaunchPlan:
    """Read a plan. Raises ArtifactError if it is damaged."""
    plan = read_json(path, LaunchPlan, "launch plan")
    if fault := next(_faults(plan), None):
        raise ArtifactError(f"{path} {fault}", hint="build the artifact again")
    return plan


def _faults(plan: LaunchPlan) -> Iterator[str]:
    """What of a plan does not fit the rest of it."""
    dimensions = {size for shape in plan.inputs for size in shape if isinstance(size, str)} | {"Q"}
    if any(location.buffer >= len(plan.inputs) + len(plan.buffers) for location in plan.outputs):
        yield "names memory that is not there"
    if len(plan.outputs) != len(plan.output_shapes):
        yield "has outputs without a shape, or shapes without an output"
    if not all(_is_expression(expression, dimensions) for expression in _expressions(plan)):
        yield "has an expression that cannot be evaluated"
    yield from _faults_of_launches(plan, plan.launches, len(plan.inputs) + len(plan.buffers), dimensions)
    for problem in plan.problems:
        yield from _faults_of_problem(plan, problem)


def _faults_of_problem(plan: LaunchPlan, problem: PlanProblem) -> Iterator[str]:
    given = {"size", "table"}
    dimensions = given | problem.dimensions.keys()
    names = {candidate.name for candidate in problem.candidates}
    if not problem.policy or any(use not in names for _, use in problem.policy) or problem.policy[-1][0] is not None:
        yield "has a problem without a policy for every size"
    if not all(_is_expression(value, given) for value in problem.dimensions.values()):
        yield "has an expression that cannot be evaluated"
    sizes = [problem.out_bytes, *(operand.bytes for operand in problem.operands)]
    for candidate in problem.candidates:
        sizes += candidate.buffers
        buffers = len(problem.operands) + 1 + len(candidate.buffers)
        yield from _faults_of_launches(plan, candidate.launches, buffers, dimensions)
    if not all(_is_expression(size, dimensions) for size in sizes):
        yield "has an expression that cannot be evaluated"


def _faults_of_launches(plan: LaunchPlan, launches: list[PlanLaunch], buffers: int, dimensions: Collection[str]) -> Iterator[str]:
    for launch in launches:
        locations = [given for given in launch.arguments if isinstance(given, Location)]
        if any(location.buffer >= buffers for location in locations):
            yield "names memory that is not there"
        if launch.kernel >= len(plan.kernels):
            yield "launches a kernel that is not there"
        elif len(launch.arguments) > len(plan.kernels[launch.kernel].parameters):
            yield "has a launch with more arguments than its kernel"
        if not all(_is_expression(expression, dimensions) for expression in _expressions_of(launch)):
            yield "has an expression that cannot be evaluated"


def _expressions(plan: LaunchPlan) -> Iterator[Expression]:
    for shape in (*plan.inputs, *plan.output_shapes):
        yield from shape
    yield from plan.buffers
    yield from (location.offset for location in plan.outputs)
    yield from (guard.value for guard in plan.guards)


def _expressions_of(launch: PlanLaunch) -> Iterator[Expression]:
    yield from launch.grid
    yield from (given.offset if isinstance(given, Location) else given for given in launch.arguments)
    yield from (guard.value for guard in launch.when)


def _is_expression(expression: Any, dimensions: Collection[str], depth: int = 0) -> bool:
    """Whether `evaluate` gives a number, unless it divides by a 0 that the dimensions make."""
    match expression:
        case bool():
            return False
        case int():
            return True
        case str():
            return expression in dimensions
        case [str() as operator, left, right] if operator in _OPERATORS and depth < _DEEPEST:
            return all(_is_expression(operand, dimensions, depth + 1) for operand in (left, right))
    return False
