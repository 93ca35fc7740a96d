"""Layers whose tokens see the last `window` tokens only, themselves included."""

import sys
from collections.abc import Sequence

from .geometry import most_held
from .manager import CacheManager


class WindowCache(CacheManager):
    """A sequence holds the blocks of its window and of the tokens about to be computed, and gives back those that fall behind.

    A prefix can be served if the blocks of its last `window - 1` tokens are cached, whatever became
    of those before them.
    """

    def first_seen(self, position: int) -> int:
        return max(0, position - self.group.window + 1)

    def match(self, digests: Sequence[bytes]) -> int:
        """Scanned from the right: a block that is not cached rules out every prefix that needs it."""
        count = known_from = len(digests)
        while count:
            first = self._first_block(count)
            while known_from > first and self.pool.find(digests[known_from - 1]) is not None:
                known_from -= 1
            if known_from <= first:
                return count
            count = known_from = known_from - 1
        return 0

    def extent(self, end: int, length: int) -> int:
        return end

    @property
    def capacity(self) -> int:
        """Any length, if there is room for a window and what goes with it."""
        num_blocks = self.pool.num_blocks
        return sys.maxsize if num_blocks >= most_held(self.group, sys.maxsize) else num_blocks * self.block_size
