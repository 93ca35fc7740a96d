"""The KV cache on the GPU: where each layer's keys and values lie."""

from ...artifacts import CacheGroup, Manifest
from .region import Region, align


def cache_bytes(manifest: Manifest, blocks: int) -> int:
    """What all caches take, each aligned."""
    return sum(len(group.tensors) * align(_bytes_of_one(group, blocks)) for group in manifest.caches)


def cache_regions(manifest: Manifest, blocks: int, address: int) -> dict[str, Region]:
    """By base: `cache:GROUP.LAYER.k` and `cache:GROUP.LAYER.v`, one after another from `address` on."""
    regions = {}
    for group in manifest.caches:
        nbytes = _bytes_of_one(group, blocks)
        for tensor in group.tensors:
            regions[tensor] = Region(address, nbytes)
            address += align(nbytes)
    return regions


def _bytes_of_one(group: CacheGroup, blocks: int) -> int:
    """One layer's keys, or its values."""
    return blocks * group.bytes_per_block // len(group.tensors)
