"""A launch plan: a segment for NVIDIA as data.

Kernels, buffers and an ordered list of launches; sizes and grids are expressions in the
segment's symbolic dimensions. From plans the build makes the graph template of each bucket.

An expression is a number, the name of a dimension, or [operator, left, right] with integers:
"+", "*", "//" (rounded down), "%", "min", "max".
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import ArtifactError
from .graph import KernelInfo, Parameter
from .tuning import Choice

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
    """A compiled kernel: its cubin by SHA-256, and what a launch must know of it.

    parameters: those that a launch gives, then Triton's own, of which the first is memory for all
    blocks of the launch where each wants `scratch_bytes`. The others are null.
    """

    cubin: str
    function: str
    threads: int
    shared_bytes: int
    parameters: list[Parameter]
    registers: int
    stack_bytes: int
    scratch_bytes: int = 0

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


class PlanOperand(_Struct, frozen=True, kw_only=True):
    """Memory that a candidate reads, and what a tuner puts there (see kernels/nvidia/choices.py)."""

    name: str
    bytes: Expression
    dtype: str
    content: Literal["numbers", "starts", "lengths", "blocks"]
    streamed: bool


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
    try:
        return msgspec.json.decode(path.read_bytes(), type=LaunchPlan)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} is not a valid launch plan: {error}", hint="build or copy the artifact again") from None
