"""Work that can be cut in several ways: the ways there are, and which of them is taken for which size.

An emitter describes such work as a `Problem`. Without measurements its policy, first guesses by
the limits written in the kernel's docstring, says what is launched; `engine tune` measures the
candidates on a GPU, and a build that is given its result asks that instead (`Context.choose`, context.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import sympy

from .launch import Condition, Launch, Size, Tensor

Content = Literal["numbers", "starts", "lengths", "blocks", "routes"]
Kind = Literal["rows", "decode", "prefill"]
SIZE = sympy.Symbol("size", integer=True, positive=True)
"""The size of a problem, in what a tuner is told."""
TABLE = sympy.Symbol("table", integer=True, positive=True)
"""Blocks of a sequence, likewise."""


class Range(NamedTuple):
    """Sizes up to this one, from where the range before ends (None: all others), are done by the candidate of that name."""

    up_to: int | None
    use: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to do a problem's work, for sizes from `least` to `most` (None: without end).

    launches: those of steps in which a condition on the problem's size holds.
    """

    launches: Callable[[Condition], list[Launch]]
    least: int = 1
    most: int | None = None

    def covers(self, first: int, last: int | None) -> bool:
        return self.least <= first and (self.most is None or (last is not None and last <= self.most))


@dataclass(frozen=True, kw_only=True)
class Operand:
    """What a tuner must put into memory: random numbers, what says where sequences are, or the order of pairs of tokens and experts.

    streamed: too large to stay in a cache. routes: of that order, how many experts there are, and how many a token chooses.
    """

    name: str
    tensor: Tensor
    content: Content = "numbers"
    streamed: bool = False
    routes: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Work whose best cut depends on `size`. name: everything else that the choice depends on.

    kind: what a size is: `rows` of a matrix, or tokens that choose experts; sequences with one new token each (`decode`); new tokens of
    one sequence (`prefill`). policy: what is taken without measurements. dimensions: for the symbols in
    operands, result and launches their values, in SIZE and TABLE.
    """

    name: str
    kind: Kind
    size: Size
    candidates: Mapping[str, Candidate]
    policy: tuple[Range, ...]
    operands: tuple[Operand, ...]
    out: Tensor
    dimensions: Mapping[Size, Size]


def dimensions_of(size: Size) -> dict[Size, Size]:
    """What the symbol in `size` (which may be S + 1 - 1, say) is where it is SIZE."""
    (symbol,) = sympy.sympify(size).free_symbols
    (value,) = sympy.solve(size - SIZE, symbol)
    return {symbol: value}


class UnfitChoice(ValueError):
    """Ranges that a problem's candidates cannot serve; the message says why."""


def check(problem: Problem, ranges: Sequence[Range]) -> None:
    """Raises UnfitChoice unless every size has one candidate, and one that is made for it."""
    first = 1
    for index, (up_to, use) in enumerate(ranges):
        candidate = problem.candidates.get(use)
        if candidate is None:
            raise UnfitChoice(f"{problem.name} has no candidate {use!r}; there are {', '.join(problem.candidates)}")
        if (up_to is None) != (index == len(ranges) - 1) or (up_to is not None and up_to < first):
            raise UnfitChoice(f"the ranges of {problem.name} do not follow each other without end")
        if not candidate.covers(first, up_to):
            raise UnfitChoice(f"{use!r} of {problem.name} is for sizes {candidate.least} to {candidate.most}, not {first} to {up_to}")
        first = 0 if up_to is None else up_to + 1
    if not ranges:
        raise UnfitChoice(f"{problem.name} has no ranges")
