"""Which layers' caches live and die alike: what a model needs of the runtime's memory, beside its weights."""

from dataclasses import dataclass
from typing import Literal

from .spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Layers with keys and values of one shape of which a token sees the same part.

    window: of the last tokens, itself included; 0 for all of them.
    """

    name: str
    kind: Literal["full", "window", "chunk"]
    window: int
    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int


def cache_groups(spec: ModelSpec) -> tuple[CacheGroup, ...]:
    """The model's groups, every layer with a cache of its own in one of them."""
    layers: dict[tuple[int, int], list[int]] = {}
    for index, layer in enumerate(spec.layers):
        if layer.mixer.source is None:
            layers.setdefault((layer.mixer.num_kv_heads, layer.mixer.head_dim), []).append(index)
    return tuple(
        CacheGroup(name=f"full{number or ''}", kind="full", window=0, layers=tuple(members), num_kv_heads=num_kv_heads, head_dim=head_dim)
        for number, ((num_kv_heads, head_dim), members) in enumerate(layers.items())
    )


def group_of_layers(spec: ModelSpec) -> list[str]:
    """The name of each layer's group; of a layer that reads another's cache, that one's."""
    own = {layer: group.name for group in cache_groups(spec) for layer in group.layers}
    return [own[index if layer.mixer.source is None else layer.mixer.source] for index, layer in enumerate(spec.layers)]
