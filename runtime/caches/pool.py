"""Blocks of one cache group: which are referenced, and which still hold a known prefix."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference-counted blocks with reuse of published ones.

    A block is *referenced* (somebody holds it), *evictable* (no reference, but cached under the
    digest of its content, so a later prompt may want it) or *free* (no reference, no content).
    Evictable blocks are evicted least recently used first.

    A block takes memory from its first use on. Order of allocation: a touched free block; a fresh
    block while fewer than `resident` have been touched; the least recently used evictable block;
    only if there is none, a fresh block beyond `resident`: more memory than that is taken for
    sequences that run, but not to remember more of those that have ended. Every operation is O(1)
    per block.
    """

    def __init__(self, num_blocks: int, *, resident: int | None = None) -> None:
        self.num_blocks = num_blocks
        self._resident = num_blocks if resident is None else resident
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._free: list[int] = []
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self.num_touched = 0
        """Blocks that have ever been used: those with a lower index."""

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free) + len(self._evictable) + self.num_blocks - self.num_touched

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - self.num_available

    def find(self, digest: bytes) -> int | None:
        """The block that holds this content, None if there is none. Takes no reference: see `acquire`."""
        return self._cached.get(digest)

    def count_evictable(self, blocks: Sequence[int]) -> int:
        """How many of these blocks nobody holds: what acquiring them takes away from `num_available`."""
        references = self._references
        return sum(1 for block in blocks if references[block] == 0)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Take a reference to each of these cached blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._evictable[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of undefined content, one reference each. The caller has checked `num_available`."""
        assert count <= self.num_available, "allocate() beyond num_available"
        blocks: list[int] = []
        for _ in range(count):
            block = self._take()
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if self.num_touched < (self.num_blocks if not self._evictable else self._resident):
            self.num_touched += 1
            return self.num_touched - 1
        block, _ = self._evictable.popitem(last=False)
        self._forget(block)
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """The block now holds the content named `digest`. The first block of that name keeps it."""
        if digest not in self._cached and self._digests[block] is None:
            self._cached[digest] = block
            self._digests[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each. The last block of a sequence becomes the first to be evicted."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._digests[block] is None:
                    self._free.append(block)
                else:
                    self._evictable[block] = None

    def forget(self, digests: Iterable[bytes]) -> None:
        """Withdraw this content from reuse, because it turned out to be bad. What is not cached is ignored."""
        for digest in digests:
            block = self._cached.get(digest)
            if block is not None:
                self._forget(block)
                if self._references[block] == 0:
                    del self._evictable[block]
                    self._free.append(block)

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        assert digest is not None, "a cached block has a digest"
        del self._cached[digest]
        self._digests[block] = None

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Assert every invariant, given the blocks that each sequence holds. For tests; O(blocks)."""
        held = Counter(block for blocks in holders for block in blocks)
        assert all(self._references[block] == held[block] for block in range(self.num_blocks)), "references differ from holders"
        free, evictable = {*self._free, *range(self.num_touched, self.num_blocks)}, set(self._evictable)
        assert len(free) == len(self._free) + self.num_blocks - self.num_touched, "a block is free twice"
        assert not free & evictable, "a block is free and evictable"
        assert not (free | evictable) & held.keys(), "a referenced block is free or evictable"
        assert len(free) + len(evictable) + len(held) == self.num_blocks, "a block is lost"
        assert all(self._digests[block] is None for block in free), "a free block has a digest"
        assert all(self._digests[block] is not None for block in evictable), "an evictable block has no digest"
        named = {digest: block for block, digest in enumerate(self._digests) if digest is not None}
        assert named == self._cached, "cached blocks differ from digests"
