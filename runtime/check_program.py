"""A program's lines, before native code runs them: it takes numbers of slots, and trusts that there is something in them."""

import re
from collections.abc import Collection, Iterator

from ..artifacts import Call, Manifest
from ..errors import ArtifactError

_VALUE = re.compile(r"value:\w+", re.ASCII)
_OPERATORS = {
    f"engine.{'norm_' * norm}{'rope_' * rope}paged_attention": (9 + 2 * norm + 2 * rope, 2 + norm) for norm in (0, 1) for rope in (0, 1)
}
"""How many tensors and numbers each operator takes that stands between segments. Each gives one tensor."""


def check_program(manifest: Manifest, inputs: Collection[str], constants: Collection[str]) -> None:
    """Raises ArtifactError for a program that reads what is not there, or passes to an operator what it does not take.

    inputs, constants: what a step brings, and what is loaded, by their names in the program. A segment checks its arguments itself.
    """
    if fault := next(_faults(manifest, {*inputs, *constants}), None):
        raise ArtifactError(f"the program {fault}", hint="build the artifact again")


def _faults(manifest: Manifest, known: Collection[str]) -> Iterator[str]:
    segments = {segment.key for segment in manifest.segments}
    values: set[str] = set()
    for call in manifest.program.calls:
        if call.kind == "segment" and call.target not in segments:
            yield f"calls segment {call.target}, which the artifact does not hold"
        if call.kind == "operator" and not _takes(call):
            yield f"calls {call.target} with {len(call.inputs)} tensors and {len(call.scalars)} numbers, which it does not take"
        if missing := [name for name in call.inputs if name not in known and name not in values]:
            yield f"uses {missing[0]}, which the artifact does not hold"
        if not all(map(_VALUE.fullmatch, call.outputs)) or len(set(call.outputs)) != len(call.outputs):
            yield f"writes {', '.join(call.outputs)}, which are not values"
        values.update(call.outputs)
        if not values.issuperset(call.frees):
            yield f"frees {', '.join(call.frees)}, which are not all there"
        values.difference_update(call.frees)
    if manifest.program.result not in values:
        yield f"ends without {manifest.program.result}, its result"


def _takes(call: Call) -> bool:
    return _OPERATORS.get(call.target) == (len(call.inputs), len(call.scalars)) and len(call.outputs) == 1
