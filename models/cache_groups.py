"""Which layers' caches live and die alike: what a model needs of the runtime's memory, beside its weights."""

from dataclasses import dataclass
from typing import Literal

from .config import ModelConfig


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


def cache_groups(config: ModelConfig) -> tuple[CacheGroup, ...]:
    """The model's groups, every layer in one of them."""
    layers = tuple(range(config.num_layers))
    return (CacheGroup(name="full", kind="full", window=0, layers=layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim),)
