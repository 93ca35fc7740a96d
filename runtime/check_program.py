"""A program's lines, before native code runs them: it takes numbers of slots, and trusts that there is something in them."""

import re
import sys
from collections.abc import Collection, Iterable, Iterator

from ..artifacts import Call, Program, SegmentInfo
from ..errors import ArtifactError
from ..kernels.cut_operators import CUT_OPERATORS

_LARGEST_EXACT = 2**53  # up to which a double holds every whole number
_VALUE = re.compile(r"value:\w+", re.ASCII)


def check_program(program: Program, segments: Iterable[SegmentInfo], constants: Collection[str]) -> None:
    """Raises ArtifactError for a program that reads what is not there, or passes to an operator what it does not take.

    constants: what is loaded, by its names in the program. A segment checks its arguments itself.
    """
    known = {*constants, *(f"input:{info.name}" for info in program.inputs)}
    if fault := next(_faults(program, {segment.key for segment in segments}, known), None):
        raise ArtifactError(f"the program {fault}", hint="build the artifact again")


def _faults(program: Program, segments: Collection[str], known: Collection[str]) -> Iterator[str]:
    values: set[str] = set()
    for call in program.calls:
        if call.kind == "segment" and call.target not in segments:
            yield f"calls segment {call.target}, which the artifact does not hold"
        if call.kind == "operator" and not _takes(call):
            yield f"calls {call.target} with {len(call.inputs)} tensors and {len(call.scalars)} numbers, which it does not take"
        elif call.kind == "operator" and (wrong := _wrong_scalars(call)):
            yield f"calls {call.target} with {wrong[0]}, which it does not take"
        if missing := [name for name in _tensors(call) if name not in known and name not in values]:
            yield f"uses {missing[0]}, which the artifact does not hold"
        if not all(map(_VALUE.fullmatch, call.outputs)) or len(set(call.outputs)) != len(call.outputs):
            yield f"writes {', '.join(call.outputs)}, which are not values"
        values.update(call.outputs)
        if not values.issuperset(call.frees):
            yield f"frees {', '.join(call.frees)}, which are not all there"
        values.difference_update(call.frees)
    if missing := [value for value in program.results.values() if value not in values]:
        yield f"ends without {missing[0]}, its result"
    if len(set(program.results.values())) != len(program.results):
        yield "has one value as two results"


def _takes(call: Call) -> bool:
    """Whether the operator that `call` names takes so many tensors and numbers, and every tensor is there that must be."""
    operator = CUT_OPERATORS.get(call.target)
    if operator is None or "" in call.inputs[: len(operator.tensors)]:
        return False
    return len(call.inputs) == operator.tensor_count and len(call.scalars) == len(operator.scalars) and len(call.outputs) == 1


def _wrong_scalars(call: Call) -> list[str]:
    """Numbers of an operator's call that are not of its schema's types: they travel as doubles."""
    named = zip(CUT_OPERATORS[call.target].scalars.items(), call.scalars, strict=True)
    return [f"{name} = {str(value)[:40]}" for (name, kind), value in named if not _fits(value, kind)]


def _fits(value: float, kind: type) -> bool:
    if kind is bool:
        return value in (0, 1)
    if kind is int:
        return value == value // 1 and abs(value) <= _LARGEST_EXACT
    return abs(value) <= sys.float_info.max


def _tensors(call: Call) -> list[str]:
    """The call's inputs but for those that are absent."""
    return [name for name in call.inputs if name or call.kind == "segment"]
