"""Layers whose tokens see every token before them."""

from collections.abc import Sequence

from .manager import CacheManager


class FullCache(CacheManager):
    """A sequence keeps all of its blocks, and gets those for all known tokens when it is admitted."""

    def first_seen(self, position: int) -> int:
        return 0

    def match(self, digests: Sequence[bytes]) -> int:
        """The longest prefix of which every block is cached."""
        for count, digest in enumerate(digests):
            if self.pool.find(digest) is None:
                return count
        return len(digests)

    def extent(self, end: int, length: int) -> int:
        return max(end, length)

    @property
    def capacity(self) -> int:
        return self.pool.num_blocks * self.block_size
