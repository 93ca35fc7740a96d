"""All cache groups of an artifact, as the scheduler sees them: a sequence has blocks in each."""

import sys
from collections.abc import Iterable, Mapping, Sequence

from ...artifacts import CacheGroup
from .chunk import ChunkCache
from .full import FullCache
from .geometry import blocks_for, most_held
from .held import Held
from .manager import CacheManager
from .window import WindowCache

_MANAGERS: dict[str, type[CacheManager]] = {"full": FullCache, "window": WindowCache, "chunk": ChunkCache, "latent": FullCache}


class Caches:
    """One manager per group, each with a pool of its own. A sequence's `Held` are in the same order.

    pools: blocks of each group, by name. resident: as in `BlockPool`, by name. All groups have one
    block size, so one digest names a block in all of them. An encoder has no groups.
    """

    def __init__(self, groups: Sequence[CacheGroup], pools: Mapping[str, int], *, resident: Mapping[str, int] | None = None) -> None:
        self.managers = [
            _MANAGERS[group.kind](group, pools[group.name], resident=None if resident is None else resident[group.name]) for group in groups
        ]
        self.block_size = groups[0].block_size if groups else 0

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence that can be computed alone."""
        return min((manager.capacity for manager in self.managers), default=sys.maxsize)

    @property
    def num_blocks(self) -> int:
        """Of all groups together."""
        return sum(manager.pool.num_blocks for manager in self.managers)

    @property
    def fullest(self) -> tuple[int, int]:
        """Blocks that are referenced, and all blocks, of the group with the largest share of them: the one that runs out first."""
        counts = [(manager.pool.num_referenced, manager.pool.num_blocks) for manager in self.managers]
        return max(counts, key=lambda pair: pair[0] / pair[1], default=(0, 0))

    def holds(self, count: int, tokens: int) -> bool:
        """Whether `count` sequences of `tokens` tokens run together, each with a block to spare."""
        return all(count * (most_held(manager.group, tokens) + 1) <= manager.pool.num_blocks for manager in self.managers)

    def hold_nothing(self, tokens: int) -> list[Held]:
        """What a sequence of up to `tokens` tokens holds before it is admitted."""
        return [Held(blocks_for(manager.group, tokens)) for manager in self.managers]

    def match(self, digests: Sequence[bytes]) -> int:
        """Blocks of the longest prefix that every group can serve. What one of them cannot serve, the others are asked again without."""
        count = len(digests)
        while True:
            before = count
            for manager in self.managers:
                count = manager.match(digests[:count])
            if count == before or len(self.managers) == 1:
                return count

    def fits(self, digests: Sequence[bytes], length: int, *, spare: int) -> bool:
        """Whether a sequence of `length` tokens with this matched prefix can be admitted, and `spare` blocks stay available."""
        return all(
            manager.needed(len(digests), length) + spare <= manager.pool.num_available - manager.pool.count_evictable(manager.find(digests))
            for manager in self.managers
        )

    def acquire(self, held: Sequence[Held], digests: Sequence[bytes]) -> None:
        """Take references to the blocks of a matched prefix."""
        for manager, own in zip(self.managers, held, strict=True):
            manager.acquire(own, digests)

    def reach(self, held: Sequence[Held]) -> int:
        """Tokens that the sequence could hold blocks for if it took all that are available."""
        return min(manager.reach(own) for manager, own in zip(self.managers, held, strict=True))

    def extend(self, held: Sequence[Held], end: int, length: int) -> int:
        """Allocate what computing the tokens before `end` takes. Returns for how many tokens the sequence has blocks now.

        length: tokens that are known. The caller has checked `reach`.
        """
        for manager, own in zip(self.managers, held, strict=True):
            manager.extend(own, manager.extent(end, length))
        return min(len(own.blocks) for own in held) * self.block_size

    def publish(self, held: Sequence[Held], digests: Sequence[bytes], start: int) -> None:
        """The first blocks are full and named `digests`; those from `start` on have not been published."""
        for manager, own in zip(self.managers, held, strict=True):
            manager.publish(own, digests, start)

    def trim(self, held: Sequence[Held], position: int) -> None:
        """Give back what neither the token at `position` nor a later one sees."""
        for manager, own in zip(self.managers, held, strict=True):
            manager.trim(own, position)

    def release(self, held: Sequence[Held]) -> None:
        """Give back everything."""
        for manager, own in zip(self.managers, held, strict=True):
            manager.release(own)

    def forget(self, digests: Sequence[bytes]) -> None:
        """Withdraw this content from reuse, because it turned out to be bad."""
        for manager in self.managers:
            manager.pool.forget(digests)

    def check(self, holders: Iterable[Sequence[Held]]) -> None:
        """Assert every invariant, given what each sequence holds. For tests."""
        by_sequence = list(holders)
        for index, manager in enumerate(self.managers):
            manager.pool.check(held[index].held for held in by_sequence)
