"""The block manager keeps its invariants and reuses exactly what it may."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime.caches.blocks import ROOT_DIGEST, BlockManager, block_digest


def names(*contents: int) -> list[bytes]:
    """Chained digests of one-token blocks with these contents."""
    digests = []
    parent = ROOT_DIGEST
    for content in contents:
        parent = block_digest(parent, np.int32(content).tobytes())
        digests.append(parent)
    return digests


def test_digest_depends_on_everything_before() -> None:
    assert names(1, 2)[1] != names(3, 2)[1]
    assert names(1, 2)[1] != names(2)[0]
    assert names(1, 2) == names(1, 2)


def test_blocks_come_back() -> None:
    manager = BlockManager(3, 4)
    blocks = manager.allocate(3)
    assert sorted(blocks) == [0, 1, 2]
    assert (manager.num_available, manager.num_used) == (0, 3)
    manager.release(blocks)
    assert (manager.num_available, manager.num_used) == (3, 0)
    manager.check([])


def test_published_blocks_are_found_and_shared() -> None:
    manager = BlockManager(4, 1)
    first = manager.allocate(2)
    a, b = names(1, 2)
    manager.publish(first[0], a)
    manager.publish(first[1], b)
    assert manager.match([a, b]) == first
    assert manager.match(names(1, 3)) == first[:1]
    assert manager.match(names(2, 2)) == []
    manager.acquire(first)
    manager.release(first)
    manager.check([first])
    assert manager.num_used == 2
    manager.release(first)
    assert manager.num_used == 0
    assert manager.match([a, b]) == first, "idle blocks are still known"
    assert manager.count_idle(first) == 2


def test_least_recently_used_goes_first_and_tails_before_heads() -> None:
    manager = BlockManager(4, 1)
    old, new = names(1, 2), names(3, 4)
    for digests in (old, new):
        blocks = manager.allocate(2)
        for block, digest in zip(blocks, digests, strict=True):
            manager.publish(block, digest)
        manager.release(blocks)
    found = manager.match(old)
    manager.acquire(found)
    manager.release(found)
    manager.allocate(1)
    assert len(manager.match(new)) == 1, "the tail of the sequence used least recently is gone"
    assert len(manager.match(old)) == 2
    manager.allocate(1)
    assert manager.match(new) == []
    assert len(manager.match(old)) == 2


def test_free_blocks_are_taken_before_known_ones_are_evicted() -> None:
    manager = BlockManager(2, 1)
    (known,) = manager.allocate(1)
    manager.publish(known, names(1)[0])
    manager.release([known])
    assert manager.allocate(1) != [known]
    assert manager.match(names(1)) == [known]


def test_beyond_the_resident_blocks_known_ones_are_evicted_before_others_are_touched() -> None:
    manager = BlockManager(10, 1, resident=2)
    for content in range(4):
        (block,) = manager.allocate(1)
        manager.publish(block, names(content)[0])
        manager.release([block])
    assert manager.num_touched == 2
    assert [bool(manager.match(names(content))) for content in range(4)] == [False, False, True, True]
    held = manager.allocate(10)
    assert sorted(held) == list(range(10)), "those who run get all there is"
    manager.release(held)
    assert manager.num_available == 10
    manager.check([])


def test_blocks_used_before_are_used_again_first() -> None:
    manager = BlockManager(100, 1)
    for _ in range(5):
        manager.release(manager.allocate(3))
    assert manager.num_touched == 3


def test_second_block_of_the_same_content_stays_private() -> None:
    manager = BlockManager(2, 1)
    first, second = manager.allocate(2)
    (digest,) = names(1)
    manager.publish(first, digest)
    manager.publish(second, digest)
    manager.release([second])
    assert manager.match([digest]) == [first]
    manager.check([[first]])


def test_forgotten_content_is_not_reused() -> None:
    manager = BlockManager(1, 1)
    blocks = manager.allocate(1)
    manager.publish(blocks[0], names(1)[0])
    manager.forget(blocks)
    assert manager.match(names(1)) == []
    manager.release(blocks)
    manager.check([])


def test_allocating_too_much_is_our_own_mistake() -> None:
    manager = BlockManager(1, 1)
    with pytest.raises(AssertionError):
        manager.allocate(2)


@given(data=st.data(), num_blocks=st.integers(1, 8), resident=st.integers(0, 8))
def test_any_order_of_operations_keeps_the_invariants(data: st.DataObject, num_blocks: int, resident: int) -> None:
    manager = BlockManager(num_blocks, 1, resident=min(resident, num_blocks))
    most_used = 0
    holders: list[tuple[list[int], list[int]]] = []  # contents, blocks
    truth: dict[int, tuple[int, ...]] = {}  # what the whole prefix up to each block was when it was written
    for _ in range(data.draw(st.integers(0, 30))):
        gives_back = data.draw(st.booleans())
        if holders and gives_back:
            _, blocks = holders.pop(data.draw(st.integers(0, len(holders) - 1)))
            manager.release(blocks)
        else:
            contents = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
            digests = names(*contents)
            reused = manager.match(digests)
            for depth, block in enumerate(reused):
                assert truth[block] == tuple(contents[: depth + 1])
            needed = len(contents) - len(reused)
            if needed <= manager.num_available - manager.count_idle(reused):
                manager.acquire(reused)
                blocks = reused + manager.allocate(needed)
                for depth, (block, digest) in enumerate(zip(blocks, digests, strict=True)):
                    truth[block] = tuple(contents[: depth + 1])
                    manager.publish(block, digest)
                holders.append((contents, blocks))
        manager.check([blocks for _, blocks in holders])
        most_used = max(most_used, manager.num_used)
        assert manager.num_touched <= max(resident, most_used)
