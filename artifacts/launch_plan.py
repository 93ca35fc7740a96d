"""A launch plan: a segment for NVIDIA as data.

Kernels, buffers and an ordered list of launches; sizes and grids are expressions in the
segment's symbolic dimensions. From plans the build makes the graph template of each bucket.

An expression is a number, the name of a dimension, or [operator, left, right] with integers:
"+", "*", "//" (rounded down), "%", "min", "max".
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ArtifactError
from .graph import Parameter
from .json_file import read_json
from .numbers import Index, Size

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
    """A compiled kernel: its cubin by SHA-256, and what a launch must know of it."""

    cubin: str
    function: str
    threads: Size
    shared_bytes: Index
    parameters: list[Parameter]
    registers: Index
    stack_bytes: Index


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


class LaunchPlan(_Struct, frozen=True, kw_only=True):
    """inputs: shape of every input, the first buffers. buffers: bytes of all others. outputs: where each result lies.

    guards: what the sizes must be for the code to be right. Dimensions are those of the inputs'
    shapes, and `Q`, the largest number of new tokens of one sequence.
    """

    inputs: list[list[Expression]]
    buffers: list[Expression]
    outputs: list[Location]
    output_shapes: list[list[Expression]]
    kernels: list[PlanKernel]
    launches: list[PlanLaunch]
    guards: list[Guard]

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def load_plan(path: Path) -> LaunchPlan:
    """Read a plan. Raises ArtifactError if it is damaged."""
    plan = read_json(path, LaunchPlan, "launch plan")
    if fault := next(_faults(plan), None):
        raise ArtifactError(f"{path} {fault}", hint="build the artifact again")
    return plan


def _faults(plan: LaunchPlan) -> Iterator[str]:
    """What of a plan does not fit the rest of it."""
    dimensions = {size for shape in plan.inputs for size in shape if isinstance(size, str)} | {"Q"}
    buffers = len(plan.inputs) + len(plan.buffers)
    locations = [*plan.outputs, *(given for launch in plan.launches for given in launch.arguments if isinstance(given, Location))]
    if any(location.buffer >= buffers for location in locations):
        yield "names memory that is not there"
    if len(plan.outputs) != len(plan.output_shapes):
        yield "has outputs without a shape, or shapes without an output"
    for launch in plan.launches:
        if launch.kernel >= len(plan.kernels):
            yield "launches a kernel that is not there"
        elif len(launch.arguments) != len(plan.kernels[launch.kernel].parameters):
            yield "has a launch with other arguments than its kernel"
    if not all(_is_expression(expression, dimensions) for expression in _expressions(plan)):
        yield "has an expression that cannot be evaluated"


def _expressions(plan: LaunchPlan) -> Iterator[Expression]:
    for shape in (*plan.inputs, *plan.output_shapes):
        yield from shape
    yield from plan.buffers
    yield from (location.offset for location in plan.outputs)
    for launch in plan.launches:
        yield from launch.grid
        yield from (given.offset if isinstance(given, Location) else given for given in launch.arguments)
    for guard in (*plan.guards, *(guard for launch in plan.launches for guard in launch.when)):
        yield guard.value


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
