"""Who holds which blocks of a cache group: what the scheduler asks of every kind of group."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ...artifacts import CacheGroup
from .geometry import blocks_for, most_held
from .held import Held
from .pool import BlockPool


class CacheManager(ABC):
    """Blocks of one group, for sequences that are scheduled by their tokens alone.

    A kind says what a token sees (`first_seen`), which prefixes it can serve (`match`) and how far
    ahead a sequence holds blocks (`extent`); the rest follows. `block_size` tokens make a block;
    digests name full blocks from the first on.
    """

    def __init__(self, group: CacheGroup, num_blocks: int, *, resident: int | None = None) -> None:
        self.group = group
        self.block_size = group.block_size
        self.pool = BlockPool(num_blocks, resident=resident)

    @abstractmethod
    def first_seen(self, position: int) -> int:
        """The first position that the token at `position` sees; never less for a later one."""

    @abstractmethod
    def match(self, digests: Sequence[bytes]) -> int:
        """How many of these blocks can be taken as computed: the most for which all that the next token sees is cached."""

    @abstractmethod
    def extent(self, end: int, length: int) -> int:
        """Tokens that a sequence of `length` known ones holds blocks for when those before `end` are about to be computed."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Tokens of the longest sequence that can be computed alone."""

    def needed(self, cached: int, length: int) -> int:
        """Blocks that a sequence of `length` tokens takes beside those of its first `cached` blocks that it has acquired."""
        return min(blocks_for(self.group, length) - cached, most_held(self.group, length) - (cached - self._first_block(cached)))

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Blocks that a sequence acquires whose prefix `digests` `match` has accepted."""
        found = [self.pool.find(digest) for digest in digests[self._first_block(len(digests)) :]]
        return [block for block in found if block is not None]

    def acquire(self, held: Held, digests: Sequence[bytes]) -> None:
        """Take references to the blocks of a matched prefix, for a sequence that holds nothing yet."""
        blocks = self.find(digests)
        self.pool.acquire(blocks)
        held.skip(len(digests) - len(blocks))
        held.add(blocks)

    def reach(self, held: Held) -> int:
        """Tokens that the sequence could hold blocks for if it took all that are available."""
        return (len(held.blocks) + self.pool.num_available) * self.block_size

    def extend(self, held: Held, tokens: int) -> None:
        """Allocate what is missing for the first `tokens` tokens. The caller has checked `reach`."""
        missing = blocks_for(self.group, tokens) - len(held.blocks)
        if missing > 0:
            held.add(self.pool.allocate(missing))

    def publish(self, held: Held, digests: Sequence[bytes], start: int) -> None:
        """The first blocks are full and named `digests`; those from `start` on have not been published."""
        for place in range(max(start, held.first), len(digests)):
            self.pool.publish(held.blocks[place], digests[place])

    def trim(self, held: Held, position: int) -> None:
        """Give back what neither the token at `position` nor a later one sees. Cached blocks stay so until they are evicted."""
        first = self.first_seen(position) // self.block_size
        if first > held.first:
            self.pool.release(held.give_back(first))

    def release(self, held: Held) -> None:
        """Give back everything."""
        self.pool.release(held.drop())

    def _first_block(self, count: int) -> int:
        """Of `count` computed blocks, the first that the next token sees."""
        return min(count, self.first_seen(count * self.block_size) // self.block_size)
