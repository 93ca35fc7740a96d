"""How much memory the KV caches get on a CPU, and how much of it is for remembering, when nobody says. No torch."""

from ...artifacts import CacheGroup, Manifest
from ...artifacts.step_inputs import step_sizes
from ...errors import UsageError
from ..caches.geometry import blocks_for
from .machine import free_memory, workers
from .pools import pool_bytes, pool_sizes, sizes_for

FREE_MEMORY_SHARE = 0.5
REMEMBERED_SHARE = 0.25


def count_blocks(
    manifest: Manifest, kv_memory: int | None, *, max_num_seqs: int, max_batch_tokens: int, free: int | None = None
) -> dict[str, int]:
    """Blocks of each cache group for kv_memory bytes, by default for what `default_kv_memory` gives; free: bytes (default: this machine's).

    Raises UsageError when not even one block of each fits.
    """
    groups = manifest.caches
    if manifest.is_encoder:
        return {}
    if kv_memory is None:
        kv_memory = default_kv_memory(manifest, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens, free=free)
    sizes = pool_sizes(groups, kv_memory, max_context=manifest.model.max_context, max_batch_tokens=max_batch_tokens)
    if not all(sizes.values()):
        raise UsageError(
            f"--kv-memory {kv_memory:,} bytes holds no block of the KV cache ({least_bytes(manifest):,} bytes for"
            f" {groups[0].block_size} tokens)",
            hint="give at least a few hundred blocks",
        )
    return sizes


def least_bytes(manifest: Manifest) -> int:
    """What one block of every cache group takes."""
    return sum(group.bytes_per_block for group in manifest.caches)


def step_bytes(manifest: Manifest, *, max_num_seqs: int, max_batch_tokens: int) -> int:
    """What activations and logits of the largest step take at most."""
    sizes = step_sizes(
        tokens=manifest.step_tokens(max_batch_tokens),
        sequences=max_num_seqs,
        rows=max_num_seqs,
        groups=manifest.caches,
        max_context=manifest.model.max_context,
    )
    return manifest.memory.step_bytes(sizes)


def default_kv_memory(manifest: Manifest, *, max_num_seqs: int, max_batch_tokens: int, free: int | None = None) -> int:
    """Bytes: enough for max_num_seqs sequences of the longest context, at most half of what weights and activations leave free, of
    which workers of one server get equal parts: they share the weights.

    Raises UsageError when not even one block of each cache group fits.
    """
    groups, max_context = manifest.caches, manifest.model.max_context
    whole = max_num_seqs * blocks_for(groups[0], max_context)
    wanted = pool_bytes(groups, sizes_for(groups, whole, max_context=max_context, max_batch_tokens=max_batch_tokens))
    step = step_bytes(manifest, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens)
    reserved = manifest.memory.weight_bytes + workers() * step
    free = free_memory() if free is None else free
    allowed = int(FREE_MEMORY_SHARE * max(0, free - reserved) / workers())
    if allowed < least_bytes(manifest):
        raise UsageError(
            f"half of what weights and activations leave free is {allowed} bytes, less than one block of the KV cache"
            f" ({least_bytes(manifest)})",
            hint="free some memory, or set --kv-memory",
        )
    return min(wanted, allowed)


def default_resident_blocks(group: CacheGroup, num_blocks: int, *, max_context: int) -> int:
    """Blocks up to which memory is taken to remember sequences that have ended: one full context, at most a quarter of all.

    The memory of a server is then what its running sequences need, whatever it has served before;
    yet the longest conversation there can be is still known at its next turn. So it is for a window:
    a conversation may go on from any of its turns.
    """
    return min(blocks_for(group, max_context), int(REMEMBERED_SHARE * num_blocks))
