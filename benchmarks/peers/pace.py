"""How fast the machine is right now. A guest may get half of a core for minutes, and no counter of its own tells."""

from collections.abc import Callable
from pathlib import Path

from engine.artifacts import load_manifest
from engine.bench.limits import compiled_limits

_PASSES = 30
"""Of a few milliseconds each; the quickest counts."""
_FIRST_LOOKS = 5


class Pace:
    """Called, it measures: the share of the best rate that it has ever found, 0 to 1."""

    def __init__(self, rate: Callable[[], float]) -> None:
        self._rate = rate
        self._best = max(rate() for _ in range(_FIRST_LOOKS))

    def __call__(self) -> float:
        now = self._rate()
        self._best = max(self._best, now)
        return now / self._best


def machine_pace(artifacts: Path, threads: int) -> Pace:
    """By multiply-adds per second of all threads, with the instructions of an artifact for this machine."""
    _, limit, *_ = compiled_limits(load_manifest(artifacts).target)
    return Pace(lambda: float(limit(threads, _PASSES)))
