"""The pool of blocks keeps its invariants and reuses exactly what it may."""

from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime.caches.digests import ROOT_DIGEST, block_digest
from engine.runtime.caches.pool import BlockPool


def names(*contents: int) -> list[bytes]:
    """Chained digests of one-token blocks with these contents."""
    digests = []
    parent = ROOT_DIGEST
    for content in contents:
        parent = block_digest(parent, np.int32(content).tobytes())
        digests.append(parent)
    return digests


def match(pool: BlockPool, digests: list[bytes]) -> list[int]:
    """The blocks of the longest prefix that is cached."""
    return list(takewhile(lambda block: block is not None, map(pool.find, digests)))  # type: ignore[arg-type]


def test_digest_depends_on_everything_before() -> None:
    assert names(1, 2)[1] != names(3, 2)[1]
    assert names(1, 2)[1] != names(2)[0]
    assert names(1, 2) == names(1, 2)


def test_blocks_come_back() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    assert sorted(blocks) == [0, 1, 2]
    assert (pool.num_available, pool.num_referenced) == (0, 3)
    pool.release(blocks)
    assert (pool.num_available, pool.num_referenced) == (3, 0)
    pool.check([])


def test_published_blocks_are_found_and_shared() -> None:
    pool = BlockPool(4)
    first = pool.allocate(2)
    a, b = names(1, 2)
    pool.publish(first[0], a)
    pool.publish(first[1], b)
    assert match(pool, [a, b]) == first
    assert match(pool, names(1, 3)) == first[:1]
    assert match(pool, names(2, 2)) == []
    pool.acquire(first)
    pool.release(first)
    pool.check([first])
    assert pool.num_referenced == 2
    pool.release(first)
    assert pool.num_referenced == 0
    assert match(pool, [a, b]) == first, "evictable blocks are still known"
    assert pool.count_evictable(first) == 2


def test_least_recently_used_goes_first_and_tails_before_heads() -> None:
    pool = BlockPool(4)
    old, new = names(1, 2), names(3, 4)
    for digests in (old, new):
        blocks = pool.allocate(2)
        for block, digest in zip(blocks, digests, strict=True):
            pool.publish(block, digest)
        pool.release(blocks)
    found = match(pool, old)
    pool.acquire(found)
    pool.release(found)
    pool.allocate(1)
    assert len(match(pool, new)) == 1, "the tail of the sequence used least recently is gone"
    assert len(match(pool, old)) == 2
    pool.allocate(1)
    assert match(pool, new) == []
    assert len(match(pool, old)) == 2


def test_free_blocks_are_taken_before_known_ones_are_evicted() -> None:
    pool = BlockPool(2)
    (known,) = pool.allocate(1)
    pool.publish(known, names(1)[0])
    pool.release([known])
    assert pool.allocate(1) != [known]
    assert match(pool, names(1)) == [known]


def test_beyond_the_resident_blocks_known_ones_are_evicted_before_others_are_touched() -> None:
    pool = BlockPool(10, resident=2)
    for content in range(4):
        (block,) = pool.allocate(1)
        pool.publish(block, names(content)[0])
        pool.release([block])
    assert pool.num_touched == 2
    assert [bool(match(pool, names(content))) for content in range(4)] == [False, False, True, True]
    held = pool.allocate(10)
    assert sorted(held) == list(range(10)), "those who run get all there is"
    pool.release(held)
    assert pool.num_available == 10
    pool.check([])


def test_blocks_used_before_are_used_again_first() -> None:
    pool = BlockPool(100)
    for _ in range(5):
        pool.release(pool.allocate(3))
    assert pool.num_touched == 3


def test_second_block_of_the_same_content_stays_private() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    (digest,) = names(1)
    pool.publish(first, digest)
    pool.publish(second, digest)
    pool.release([second])
    assert match(pool, [digest]) == [first]
    pool.check([[first]])


def test_forgotten_content_is_not_reused() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], names(1)[0])
    pool.forget(names(1))
    assert match(pool, names(1)) == []
    pool.release(blocks)
    pool.check([])


def test_forgotten_content_that_nobody_holds_is_free() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    for block, digest in zip(blocks, names(1, 2), strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    pool.forget([*names(1, 2), *names(3)])
    pool.check([])
    assert sorted(pool.allocate(2)) == blocks


def test_allocating_too_much_is_our_own_mistake() -> None:
    pool = BlockPool(1)
    with pytest.raises(AssertionError):
        pool.allocate(2)


@given(data=st.data(), num_blocks=st.integers(1, 8), resident=st.integers(0, 8))
def test_any_order_of_operations_keeps_the_invariants(data: st.DataObject, num_blocks: int, resident: int) -> None:
    pool = BlockPool(num_blocks, resident=min(resident, num_blocks))
    most_used = 0
    holders: list[tuple[list[int], list[int]]] = []  # contents, blocks
    truth: dict[int, tuple[int, ...]] = {}  # what the whole prefix up to each block was when it was written
    for _ in range(data.draw(st.integers(0, 30))):
        gives_back = data.draw(st.booleans())
        if holders and gives_back:
            _, blocks = holders.pop(data.draw(st.integers(0, len(holders) - 1)))
            pool.release(blocks)
        else:
            contents = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
            digests = names(*contents)
            reused = match(pool, digests)
            for depth, block in enumerate(reused):
                assert truth[block] == tuple(contents[: depth + 1])
            needed = len(contents) - len(reused)
            if needed <= pool.num_available - pool.count_evictable(reused):
                pool.acquire(reused)
                blocks = reused + pool.allocate(needed)
                for depth, (block, digest) in enumerate(zip(blocks, digests, strict=True)):
                    truth[block] = tuple(contents[: depth + 1])
                    pool.publish(block, digest)
                holders.append((contents, blocks))
        pool.check([blocks for _, blocks in holders])
        most_used = max(most_used, pool.num_referenced)
        assert pool.num_touched <= max(resident, most_used)
