"""A model's cache groups as a manifest lists them."""

from typing import Any

from ..artifacts import CacheGroup
from ..models.cache_groups import cache_groups
from ..models.spec import ModelSpec


def manifest_groups(spec: ModelSpec, *, block_size: int, kv_dtype: Any) -> list[CacheGroup]:
    """The groups of a model whose keys and values are held in `kv_dtype`, in blocks of that many tokens."""
    return [
        CacheGroup(
            name=group.name,
            kind=group.kind,
            window=group.window,
            layers=list(group.layers),
            num_kv_heads=group.num_kv_heads,
            head_dim=group.head_dim,
            block_size=block_size,
            dtype=kv_dtype,
        )
        for group in cache_groups(spec)
    ]
