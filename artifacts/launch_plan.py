"""A launch plan: a segment for NVIDIA as data.

Kernels, buffers and an ordered list of launches; sizes and grids are expressions in the
segment's symbolic dimensions. From plans the build makes the graph template of each bucket.

An expression is a number, the name of a dimension, or [operator, left, right] with integers:
"+", "*", "//" (rounded down), "%", "min", "max".
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ArtifactError
from .graph import Parameter

Expression = int | str | list[Any]

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
        case int():
            return expression
        case str() if expression in dimensions:
            return dimensions[expression]
        case [str() as operator, left, right] if operator in _OPERATORS:
            return int(_OPERATORS[operator](evaluate(left, dimensions), evaluate(right, dimensions)))
    raise ArtifactError(f"a launch plan has an expression that cannot be evaluated: {expression!r}", hint="build the artifact again")


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PlanKernel(_Struct, frozen=True, kw_only=True):
    """A compiled kernel: its cubin by SHA-256, and what a launch must know of it."""

    cubin: str
    function: str
    threads: int
    shared_bytes: int
    parameters: list[Parameter]
    registers: int
    stack_bytes: int


class Location(_Struct, frozen=True, kw_only=True):
    """Bytes from the start of one of the plan's buffers."""

    buffer: int
    offset: Expression = 0


class Guard(_Struct, frozen=True, kw_only=True):
    """minimum <= value <= maximum (None: no bound)."""

    value: Expression
    minimum: int
    maximum: int | None


class PlanLaunch(_Struct, frozen=True, kw_only=True):
    """One launch; in steps where a guard of `when` does not hold it is left out."""

    kernel: int
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
    try:
        return msgspec.json.decode(path.read_bytes(), type=LaunchPlan)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} is not a valid launch plan: {error}", hint="build or copy the artifact again") from None
