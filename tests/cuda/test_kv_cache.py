"""Where caches lie on a GPU: keys and values in two tensors of a layer, latents in one."""

from itertools import pairwise

from engine.artifacts import CacheGroup
from engine.runtime.cuda.kv_cache import cache_bytes, cache_regions
from engine.runtime.cuda.region import ALIGNMENT

FULL = CacheGroup(name="full", kind="full", layers=[0, 2], num_kv_heads=2, head_dim=24, block_size=32, dtype="bfloat16")
LATENT = CacheGroup(name="latent", kind="latent", layers=[1, 3, 4], num_kv_heads=1, head_dim=576, block_size=32, dtype="bfloat16")
POOLS = {"full": 5, "latent": 7}
START = 1 << 20


def test_a_layer_of_latents_has_one_tensor() -> None:
    regions = cache_regions([FULL, LATENT], POOLS, START)
    keys_and_values = [f"cache:full.{layer}.{part}" for layer in (0, 2) for part in "kv"]
    assert list(regions) == [*keys_and_values, "cache:latent.1.latent", "cache:latent.3.latent", "cache:latent.4.latent"]
    assert {regions[name].nbytes for name in keys_and_values} == {5 * 2 * 32 * 24 * 2}
    assert {region.nbytes for name, region in regions.items() if "latent" in name} == {7 * 32 * 576 * 2}


def test_none_reaches_into_another() -> None:
    regions = list(cache_regions([FULL, LATENT], POOLS, START).values())
    assert regions[0].address == START
    for one, next_one in pairwise(regions):
        assert one.address + one.nbytes <= next_one.address
    assert all(region.address % ALIGNMENT == 0 for region in regions)
    assert regions[-1].address + regions[-1].nbytes <= START + cache_bytes([FULL, LATENT], POOLS)
