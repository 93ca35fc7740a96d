"""What a build would have to make, and why the store does not have it: known from keys, before anything is compiled."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..artifacts.store.ingredients import Difference, differences, nearest
from ..artifacts.store.keys import Identity
from ..artifacts.store.store import Store
from ..errors import BuildError
from .backend import Backend
from .lower import code_identities
from .partition import Partition
from .progress import Reporter
from .step_program import Wanted, find_program

_MOST = 12
"""Differences of one thing that an error shows."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """One thing that a build needs. bytes: what it takes in the store, None if it is not there; then `nearest` comes closest to it."""

    identity: Identity
    what: str
    bytes: int | None
    nearest: Identity | None = None

    @property
    def differences(self) -> Sequence[Difference]:
        """What would have to be another for the nearest to be it: `first` here, `second` in the store."""
        return differences(self.identity.ingredients, self.nearest.ingredients) if self.nearest is not None else []

    def explained(self) -> list[str]:
        """Why it would have to be made, in lines."""
        if self.nearest is None:
            return [f"the store has no other {self.identity.kind}"]
        shown = [f"{d.ingredient}: {d.first or 'none'} here, {d.second or 'none'} there" for d in self.differences[:_MOST]]
        more = len(self.differences) - len(shown)
        head = f"nearest in the store is {self.nearest.kind} {self.nearest.key}, but"
        return [head, *(f"  {line}" for line in shown), *([f"  and {more} more"] if more else [])]


def expected_program(wanted: Wanted, store: Store) -> Expected:
    """The calls of a step."""
    return _expected([("the calls of a step", wanted.identity())], store)[0]


def expected_code(backend: Backend, parts: Partition, store: Store, *, whole: bool = True) -> list[Expected]:
    """Everything that a program needs compiled. whole: it has all of the model's calls, so that counting them says something."""
    calls = [call.target for call in parts.calls]
    wanted = code_identities(backend, parts.forms)
    described = [
        "the kernel library"
        if form is None
        else f"{len(parts.forms[form]['nodes'])} nodes" + (f", {calls.count(form)} calls a step" if whole else "")
        for form in wanted
    ]
    return _expected(list(zip(described, wanted.values(), strict=True)), store)


def check_warm(wanted: Wanted, store: Store) -> None:
    """Raises BuildError, with the reasons, if a build would have to compile anything, or trace the model."""
    program = expected_program(wanted, store)
    found = find_program(wanted, store, Reporter(quiet=True)) if program.bytes is not None else None
    needed = [program, *(expected_code(wanted.kind.backend, found.parts, store) if found is not None else [])]
    cold = [item for item in needed if item.bytes is None]
    if cold:
        lines = [
            f"  {item.identity.kind} {item.identity.key} ({item.what}): {line}" if index == 0 else f"    {line}"
            for item in cold
            for index, line in enumerate(item.explained())
        ]
        unknown = "; what else is known only when the model is traced, as engine build --dry-run does" if found is None else ""
        raise BuildError(
            f"{len(cold)} of {len(needed)} things are not in the store {store.directory}{unknown}:\n" + "\n".join(lines),
            hint="fill the store (engine cache import, or a build without --require-warm), or undo what differs",
        )


def _expected(described: list[tuple[str, Identity]], store: Store) -> list[Expected]:
    entries = [store.find(identity) for _, identity in described]
    others = [record.identity for record in store.records()] if None in entries else []
    return [
        Expected(identity=identity, what=what, bytes=None, nearest=nearest(identity, others))
        if entry is None
        else Expected(identity=identity, what=what, bytes=entry.record.size)
        for (what, identity), entry in zip(described, entries, strict=True)
    ]
