"""The KV cache on the GPU: where each layer's keys and values lie."""

from ...artifacts import Manifest
from .weights import Region, align


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
