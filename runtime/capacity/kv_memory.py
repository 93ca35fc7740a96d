"""How much memory the KV cache gets on a CPU, and how much of it is for remembering, when nobody says. No torch."""

from ...artifacts import Manifest
from ...artifacts.step_inputs import step_sizes
from ...errors import UsageError
from .machine import free_memory

FREE_MEMORY_SHARE = 0.5
REMEMBERED_SHARE = 0.25
MOST_SLOTS = 2**31 - 1
"""A slot's number is an int32."""


def count_blocks(manifest: Manifest, kv_memory: int | None, *, max_num_seqs: int, max_batch_tokens: int, free: int | None = None) -> int:
    """Blocks of the KV cache for kv_memory bytes, by default for what `default_kv_memory` gives; free: bytes (default: this machine's).

    Raises UsageError when not even one block fits.
    """
    (spec,) = manifest.caches
    if kv_memory is None:
        kv_memory = default_kv_memory(
            bytes_per_block=spec.bytes_per_block,
            block_size=spec.block_size,
            max_context=manifest.model.max_context,
            max_num_seqs=max_num_seqs,
            reserved=manifest.memory.weight_bytes + step_bytes(manifest, max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens),
            free=free,
        )
    if kv_memory < spec.bytes_per_block:
        raise UsageError(
            f"--kv-memory {kv_memory:,} bytes holds no block of the KV cache ({spec.bytes_per_block:,} bytes for {spec.block_size} tokens)",
            hint="give at least a few hundred blocks",
        )
    return min(kv_memory // spec.bytes_per_block, MOST_SLOTS // spec.block_size)


def step_bytes(manifest: Manifest, *, max_num_seqs: int, max_batch_tokens: int) -> int:
    """What activations and logits of the largest step take at most."""
    sizes = step_sizes(
        tokens=max_batch_tokens,
        sequences=max_num_seqs,
        rows=max_num_seqs,
        groups=manifest.caches,
        max_context=manifest.model.max_context,
    )
    return manifest.memory.step_bytes(sizes)


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
