"""A kernel launch before it is compiled: what an operator's emitter returns.

Sizes are integers or sympy expressions in the symbolic dimensions of a step; `Q` among them is
the largest number of new tokens that one sequence has in it (1 when everyone decodes). Nothing
here touches a device: the compiler turns launches into cubins and a launch plan, the tests run
them with Triton's interpreter.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy

Size: TypeAlias = Any
"""An integer or a sympy expression (sympy has no types)."""
QUERY_LENGTH = sympy.Symbol("Q", integer=True, positive=True)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What decides how work is cut. shared_bytes: per block, at most."""

    multiprocessors: int
    shared_bytes: int
    capability: int


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Where a tensor will lie: elements of `dtype` from `offset` on in a buffer. Strides and offset count elements."""

    buffer: Hashable
    dtype: str
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size = 0


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Holds when minimum <= value <= maximum (None: no upper bound)."""

    value: Size
    minimum: int = 0
    maximum: int | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a Triton function, left out in steps where a condition of `when` does not hold.

    arguments: tensors (passed as pointers to their first element) and integers, by parameter name.
    constants: the constexpr parameters. integer_types: of integers that are not "i32". max_registers: of a thread; None leaves it to
    the compiler, which would rather spill one or two than have fewer programs on a multiprocessor.
    """

    function: Any
    grid: tuple[Size, Size, Size]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None
    when: tuple[Condition, ...] = ()
    integer_types: Mapping[str, str] = field(default_factory=dict)


def cdiv(value: Size, divisor: Size) -> Size:
    """value / divisor, rounded up."""
    return (value + divisor - 1) // divisor
