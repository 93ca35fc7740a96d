"""Ingredients of keys as a manifest records them, and how those of two things differ."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .keys import Identity

Recorded = Mapping[str, Mapping[str, str]]
"""Ingredients by entry: those that all entries of a kind share under `KIND`, the rest of each under `KIND KEY`."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An ingredient that two things do not share; None where one has no such ingredient."""

    ingredient: str
    first: str | None
    second: str | None


def recorded(identities: Iterable[Identity]) -> dict[str, dict[str, str]]:
    """What a manifest says of the things that were compiled for it; see Recorded."""
    by_kind: dict[str, list[Identity]] = {}
    for identity in identities:
        by_kind.setdefault(identity.kind, []).append(identity)
    found: dict[str, dict[str, str]] = {}
    for kind, members in sorted(by_kind.items()):
        first = members[0].ingredients.items()
        shared = dict(item for item in first if all(item in member.ingredients.items() for member in members))
        found[kind] = shared
        for member in sorted(members, key=lambda member: member.key):
            found[f"{kind} {member.key}"] = {name: value for name, value in member.ingredients.items() if name not in shared}
    return found


def identities(found: Recorded) -> list[Identity]:
    """The reverse of `recorded`."""
    entries = []
    for name, own in found.items():
        kind, _, key = name.partition(" ")
        if key:
            entries.append(Identity(kind=kind, key=key, ingredients={**found.get(kind, {}), **own}))
    return entries


def differences(first: Mapping[str, str], second: Mapping[str, str]) -> list[Difference]:
    """Every ingredient that is not the same, by name."""
    names = sorted({*first, *second})
    return [Difference(ingredient=n, first=first.get(n), second=second.get(n)) for n in names if first.get(n) != second.get(n)]


def nearest(wanted: Identity, candidates: Iterable[Identity]) -> Identity | None:
    """The candidate of the same kind with the fewest ingredients that differ from those of `wanted`."""
    of_kind = [candidate for candidate in candidates if candidate.kind == wanted.kind]
    return min(of_kind, key=lambda candidate: len(differences(wanted.ingredients, candidate.ingredients)), default=None)
