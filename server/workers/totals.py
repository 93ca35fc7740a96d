"""What a worker and those before it have done."""

import msgspec

from ...protocol import Stats

_TOTALS = tuple(name for name in Stats.__struct_fields__ if name.endswith("_total") and name != "blocks_total")


class Totals:
    """Adds up: a worker that replaces another one begins to count at zero, and no total may fall."""

    def __init__(self) -> None:
        self._past = Stats()
        self._current = Stats()

    @property
    def stats(self) -> Stats:
        """The current worker's figures, and totals over it and all before it."""
        return msgspec.structs.replace(
            self._current, **{name: getattr(self._past, name) + getattr(self._current, name) for name in _TOTALS}
        )

    def take(self, stats: Stats) -> None:
        """The current worker's figures after its latest step."""
        self._current = stats

    def worker_died(self) -> None:
        """What comes next is of another worker, in which nothing runs yet."""
        self._past = msgspec.structs.replace(self.stats, running=0, waiting=0, blocks_used=0, blocks_total=0)
        self._current = Stats()
