"""Why two builds have other keys: the ingredients that differ, from the manifests alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from .ingredients import Difference, Recorded, differences, identities, nearest
from .keys import Identity


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two things of one kind with other keys. first or second is None where the other build has nothing of the kind left to compare."""

    first: Identity | None
    second: Identity | None
    differences: Sequence[Difference]


def explain(first: Recorded, second: Recorded) -> list[Comparison]:
    """What each build has and the other has not, beside the nearest of the other's; empty if all keys are the same."""
    ours, theirs = _only_in(first, second), _only_in(second, first)
    comparisons = []
    for mine in ours:
        other = nearest(mine, theirs)
        if other is not None:
            theirs.remove(other)
        differing = differences(mine.ingredients, other.ingredients) if other is not None else []
        comparisons.append(Comparison(first=mine, second=other, differences=differing))
    return [*comparisons, *(Comparison(first=None, second=other, differences=[]) for other in theirs)]


def _only_in(found: Recorded, other: Recorded) -> list[Identity]:
    keys = {(identity.kind, identity.key) for identity in identities(other)}
    return [identity for identity in identities(found) if (identity.kind, identity.key) not in keys]
