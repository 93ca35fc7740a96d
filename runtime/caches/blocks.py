"""Which blocks of the KV cache belong to whom, and which can be reused because they hold a known prefix."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

ROOT_DIGEST = b""
"""Of sequences whose keys and values depend on nothing but their tokens."""


def block_digest(parent: bytes, tokens: bytes) -> bytes:
    """Name of a full block's content: its tokens (int32 bytes) and, through `parent`, all before them.

    128 bits of a cryptographic hash: nobody can write a prompt that is mistaken for another one.
    """
    return blake2b(parent + tokens, digest_size=16).digest()


class BlockManager:
    """Reference-counted blocks of the KV cache with reuse of published ones.

    A block is *used* (somebody holds a reference), *idle* (no reference, but published under the
    digest of its content, so a later prompt may want it) or *free* (no reference, no content).
    Idle blocks are evicted least recently used first.

    A block takes memory from its first use on. So free blocks that have been used before are taken
    first. Up to `resident` blocks, others are taken before any idle one is evicted; beyond that
    the other way round: more memory than that is taken for sequences that run, but not to remember
    more of those that have ended. Every operation is O(1) per block.
    """

    def __init__(self, num_blocks: int, block_size: int, *, resident: int | None = None) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._resident = num_blocks if resident is None else resident
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._published: dict[bytes, int] = {}
        self._free: list[int] = []
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.num_touched = 0
        """Blocks that have ever been used: those with a lower index."""

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free) + len(self._idle) + self.num_blocks - self.num_touched

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """Published blocks for the longest known prefix of `digests`. Takes no reference: see `acquire`."""
        published = self._published
        blocks: list[int] = []
        for digest in digests:
            block = published.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_idle(self, blocks: Sequence[int]) -> int:
        """How many of these blocks nobody holds: what acquiring them takes away from `num_available`."""
        references = self._references
        return sum(1 for block in blocks if references[block] == 0)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Take a reference to each of these matched blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._idle[block]
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
        if self.num_touched < (self.num_blocks if not self._idle else self._resident):
            self.num_touched += 1
            return self.num_touched - 1
        block, _ = self._idle.popitem(last=False)
        self._unpublish(block)
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """The block now holds the content named `digest`. The first block of that name keeps it."""
        if digest not in self._published and self._digests[block] is None:
            self._published[digest] = block
            self._digests[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each. The last block of a sequence becomes the first to be evicted."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._digests[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def forget(self, blocks: Sequence[int]) -> None:
        """Withdraw used blocks from reuse, because their content turned out to be bad."""
        for block in blocks:
            assert self._references[block] > 0, "forget() of a block nobody holds"
            if self._digests[block] is not None:
                self._unpublish(block)

    def _unpublish(self, block: int) -> None:
        digest = self._digests[block]
        assert digest is not None, "an idle block has a digest"
        del self._published[digest]
        self._digests[block] = None

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Assert every invariant, given the blocks that each sequence holds. For tests; O(blocks)."""
        held = Counter(block for blocks in holders for block in blocks)
        assert all(self._references[block] == held[block] for block in range(self.num_blocks)), "references differ from holders"
        free, idle = {*self._free, *range(self.num_touched, self.num_blocks)}, set(self._idle)
        assert len(free) == len(self._free) + self.num_blocks - self.num_touched, "a block is free twice"
        assert not free & idle, "a block is free and idle"
        assert not (free | idle) & held.keys(), "a used block is free or idle"
        assert len(free) + len(idle) + len(held) == self.num_blocks, "a block is lost"
        assert all(self._digests[block] is None for block in free), "a free block has a digest"
        assert all(self._digests[block] is not None for block in idle), "an idle block has no digest"
        named = {digest: block for block, digest in enumerate(self._digests) if digest is not None}
        assert named == self._published, "published blocks differ from digests"
