"""A histogram that costs a fraction of a microsecond per observation, for what happens at every token."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate


class Histogram:
    """Counts values by bucket. Used from one thread; `bounds` are the buckets' upper ends, rising. sum: of all values."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.text = text
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self._counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> Iterator[int]:
        """How many values there were up to each bound, and in all."""
        return accumulate(self._counts)
