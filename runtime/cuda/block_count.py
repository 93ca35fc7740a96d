"""How many blocks the KV caches get of the GPU's memory. Needs no GPU to say so."""

from ...artifacts import Manifest
from ...errors import DeviceError, UsageError
from ..caches.geometry import blocks_for
from ..capacity.pools import pool_bytes, pool_sizes

FREE_MEMORY_SHARE = 0.9
"""Of what weights and the largest step leave free; the rest is for code, graphs and whoever else uses the GPU."""


def probe_tokens(manifest: Manifest) -> int:
    """Tokens of the step that replays the golden probe."""
    golden = manifest.probe.shortest
    return len(golden.tokens) if golden else 1


def count_blocks(manifest: Manifest, kv_memory: int | None, free: int, *, max_batch_tokens: int) -> dict[str, int]:
    """Blocks of each cache group for kv_memory bytes, or for a share of the GPU's free ones.

    Raises UsageError or DeviceError if there would be fewer than the golden probe needs.
    """
    groups = manifest.caches
    least = {group.name: blocks_for(group, probe_tokens(manifest)) for group in groups}
    memory = int(FREE_MEMORY_SHARE * free) if kv_memory is None else kv_memory
    sizes = pool_sizes(groups, memory, max_context=manifest.model.max_context, max_batch_tokens=max_batch_tokens)
    if all(sizes[name] >= count for name, count in least.items()):
        return sizes
    tokens = least[groups[0].name] * groups[0].block_size
    needs = f"the least is {pool_bytes(groups, least):,} bytes for {tokens} tokens"
    if kv_memory is not None:
        raise UsageError(f"--kv-memory {kv_memory:,} bytes holds too little of the KV cache: {needs}", hint="give a few hundred blocks")
    raise DeviceError(
        f"weights and steps leave {free:,} bytes of the GPU's memory free, too little for the KV cache: {needs}",
        hint="free memory of the GPU, or lower --max-batch-tokens and --max-num-seqs",
    )
