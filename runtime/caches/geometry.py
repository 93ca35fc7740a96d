"""How many blocks of a cache group a sequence takes. No numpy: `engine plan` asks too."""

from ...artifacts import CacheGroup


def blocks_for(group: CacheGroup, tokens: int) -> int:
    """Blocks in which that many tokens lie."""
    return -(-tokens // group.block_size)


def most_held(group: CacheGroup, length: int) -> int:
    """The most blocks that a sequence of up to `length` tokens holds while it decodes.

    Of a window: those of the `window - 1` tokens before the one at hand, its own, and one that
    leaves the window before a block is full.
    """
    whole = blocks_for(group, length)
    return whole if group.keeps_all else min(whole, blocks_for(group, group.window - 1) + 2)
