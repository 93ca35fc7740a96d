"""What an emitter is given, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .choices import Problem, Range, check
from .launch import Condition, Device, Launch, Size, Tensor


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an emitter may ask for. allocate(dtype, shape): memory that lives as long as the operator runs.

    choose: which candidates of a problem are launched for which sizes; by default as its policy says.
    """

    device: Device
    allocate: Callable[[str, tuple[Size, ...]], Tensor]
    choose: Callable[[Problem], Sequence[Range]] = lambda problem: problem.policy


Emit = Callable[[tuple[Any, ...], Tensor, Context], list[Launch]]
"""How an operator becomes launches: its arguments in the order of the schema (tensors, numbers, None) and where its result goes."""


def launches_of(problem: Problem, context: Context) -> list[Launch]:
    """The problem's launches, every size by the candidate that was chosen for it. Raises UnfitChoice."""
    ranges = context.choose(problem)
    check(problem, ranges)
    launches: list[Launch] = []
    first = 1
    for up_to, use in ranges:
        launches += problem.candidates[use].launches(Condition(value=problem.size, minimum=first, maximum=up_to))
        first = first if up_to is None else up_to + 1
    return launches
