"""The KV cache on the GPU: how many blocks it gets, and where each layer's keys and values lie."""

from ...artifacts import Manifest
from ...errors import DeviceError, UsageError
from ..kv_memory import MOST_SLOTS
from .weights import Region, align

FREE_MEMORY_SHARE = 0.9
"""Of what weights and the largest step leave free; the rest is for code, graphs and whoever else uses the GPU."""


def count_blocks(manifest: Manifest, kv_memory: int | None, free: int, *, least: int) -> int:
    """Blocks for kv_memory bytes, or for a share of the GPU's free ones.

    least: blocks that the golden probe needs. Raises UsageError or DeviceError if there would be fewer.
    """
    spec = manifest.kv_cache
    wanted = int(FREE_MEMORY_SHARE * free) if kv_memory is None else kv_memory
    blocks = min(wanted // spec.bytes_per_block, MOST_SLOTS // spec.block_size)
    if blocks >= least:
        return blocks
    needs = f"the least is {least * spec.bytes_per_block:,} bytes for {least * spec.block_size} tokens"
    if kv_memory is not None:
        raise UsageError(f"--kv-memory {kv_memory:,} bytes holds too little of the KV cache: {needs}", hint="give a few hundred blocks")
    raise DeviceError(
        f"weights and steps leave {free:,} bytes of the GPU's memory free, too little for the KV cache: {needs}",
        hint="free memory of the GPU, or lower --max-batch-tokens and --max-num-seqs",
    )


def cache_bytes(manifest: Manifest, blocks: int) -> int:
    """What all caches take, each aligned."""
    return 2 * manifest.kv_cache.num_layers * align(_bytes_of_one(manifest, blocks))


def cache_regions(manifest: Manifest, blocks: int, address: int) -> dict[str, Region]:
    """By base: `kv:LAYER.k` and `kv:LAYER.v`, one after another from `address` on."""
    nbytes = _bytes_of_one(manifest, blocks)
    names = [f"kv:{layer}.{part}" for layer in range(manifest.kv_cache.num_layers) for part in "kv"]
    return {name: Region(address + index * align(nbytes), nbytes) for index, name in enumerate(names)}


def _bytes_of_one(manifest: Manifest, blocks: int) -> int:
    """One layer's keys, or its values."""
    return blocks * manifest.kv_cache.bytes_per_block // (2 * manifest.kv_cache.num_layers)
