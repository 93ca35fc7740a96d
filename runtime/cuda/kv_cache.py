"""The KV caches on the GPU: where each layer's keys and values, or its latents, lie."""

from collections.abc import Mapping, Sequence

from ...artifacts import CacheGroup
from .region import Region, align


def cache_bytes(groups: Sequence[CacheGroup], pools: Mapping[str, int]) -> int:
    """What all caches take, each aligned. pools: blocks of each group."""
    return sum(len(group.tensors) * align(_bytes_of_one(group, pools)) for group in groups)


def cache_regions(groups: Sequence[CacheGroup], pools: Mapping[str, int], address: int) -> dict[str, Region]:
    """By base: `cache:GROUP.LAYER.k` and `.v`, or `.latent`, one after another from `address` on."""
    regions = {}
    for group in groups:
        nbytes = _bytes_of_one(group, pools)
        for tensor in group.tensors:
            regions[tensor] = Region(address, nbytes)
            address += align(nbytes)
    return regions


def _bytes_of_one(group: CacheGroup, pools: Mapping[str, int]) -> int:
    """One layer's keys, its values, or its latents."""
    return pools[group.name] * group.bytes_per_block // len(group.tensors)
