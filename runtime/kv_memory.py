"""How much memory the KV cache gets, and how much of it is for remembering, when nobody says. No torch."""

from ..errors import UsageError
from .machine import free_memory

FREE_MEMORY_SHARE = 0.5
REMEMBERED_SHARE = 0.25
MOST_SLOTS = 2**31 - 1
"""A slot's number is an int32."""


def default_kv_memory(
    *, bytes_per_block: int, block_size: int, max_context: int, max_num_seqs: int, reserved: int = 0, free: int | None = None
) -> int:
    """Bytes: enough for max_num_seqs sequences of max_context tokens, at most half of the free memory.

    reserved: bytes of the free memory that weights and activations will take, by the artifact's
    memory plan. Raises UsageError when not even one block fits.
    """
    wanted = max_num_seqs * -(-max_context // block_size) * bytes_per_block
    free = free_memory() if free is None else free
    allowed = int(FREE_MEMORY_SHARE * max(0, free - reserved))
    if allowed < bytes_per_block:
        raise UsageError(
            f"half of what weights and activations leave free is {allowed} bytes, less than one block of the KV cache ({bytes_per_block})",
            hint="free some memory, or set --kv-memory",
        )
    return min(wanted, allowed)


def default_resident_blocks(*, num_blocks: int, block_size: int, max_context: int) -> int:
    """Blocks up to which memory is taken to remember sequences that have ended: one full context, at most a quarter of all.

    The memory of a server is then what its running sequences need, whatever it has served before;
    yet the longest conversation there can be is still known at its next turn.
    """
    return min(-(-max_context // block_size), int(REMEMBERED_SHARE * num_blocks))
