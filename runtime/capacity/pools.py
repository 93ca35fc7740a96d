"""How memory for keys and values is shared out among cache groups, each of which has a pool of its own."""

from collections.abc import Sequence

from ...artifacts import CacheGroup
from ..caches.geometry import blocks_for, most_held

MOST_SLOTS = 2**31 - 1
"""A slot's number is an int32."""


def pool_sizes(groups: Sequence[CacheGroup], memory: int, *, max_context: int, max_batch_tokens: int) -> dict[str, int]:
    """Blocks of each group for `memory` bytes, by name: so many that sequences of `max_context` tokens use all groups up together.

    Zero where there is not enough for one block of each.
    """
    low, high = 0, MOST_SLOTS
    while low < high:  # the most blocks that a group would have which keeps every token
        middle = (low + high + 1) // 2
        sizes = sizes_for(groups, middle, max_context=max_context, max_batch_tokens=max_batch_tokens)
        low, high = (middle, high) if pool_bytes(groups, sizes) <= memory else (low, middle - 1)
    return sizes_for(groups, low, max_context=max_context, max_batch_tokens=max_batch_tokens)


def sizes_for(groups: Sequence[CacheGroup], whole: int, *, max_context: int, max_batch_tokens: int) -> dict[str, int]:
    """Blocks of each group where one that keeps every token has `whole`.

    A window's share is what a sequence holds of it, and beside that, for all sequences together, the
    blocks of two steps' tokens: those of a chunk of a prompt fall behind only once it has been computed.
    """
    steps = blocks_for(groups[0], 2 * max_batch_tokens)
    sizes = {}
    for group in groups:
        share = -(-whole * most_held(group, max_context) // blocks_for(group, max_context))
        blocks = whole if group.keeps_all else min(whole, share + steps)
        sizes[group.name] = min(blocks, MOST_SLOTS // group.block_size)
    return sizes


def pool_bytes(groups: Sequence[CacheGroup], sizes: dict[str, int]) -> int:
    """What pools of these sizes take."""
    return sum(sizes[group.name] * group.bytes_per_block for group in groups)
