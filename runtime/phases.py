"""The phases of a start, each told as it ends."""

import time
from collections.abc import Callable

OnPhase = Callable[[str, float], None]
"""Told the name of a phase and the seconds it took."""


class Phases:
    """A clock that starts anew with every phase."""

    def __init__(self, on_phase: OnPhase) -> None:
        self._on_phase, self._start = on_phase, time.perf_counter()

    def ended(self, name: str) -> None:
        now = time.perf_counter()
        self._on_phase(name, now - self._start)
        self._start = now
