"""Which layers' caches live and die alike: what a model needs of the runtime's memory, beside its weights."""

from dataclasses import dataclass
from typing import Literal

from .parts.latent_attention import LatentAttentionSpec
from .spec import Mixer, ModelSpec

Kind = Literal["full", "window", "chunk", "latent"]


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Layers with keys and values of one shape of which a token sees the same part; or with latents, of which it sees all.

    window: of the last tokens, itself included, or of a chunk; 0 for all of them.
    """

    name: str
    kind: Kind
    window: int
    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int


def cache_groups(spec: ModelSpec) -> tuple[CacheGroup, ...]:
    """The model's groups, every layer with a cache of its own in one of them; those of a kind are numbered if there are several."""
    members: dict[tuple[Kind, int, int, int], list[int]] = {}
    for index, layer in enumerate(spec.layers):
        if layer.mixer.source is None and layer.mixer.causal:
            key = (*_visible(spec, index), layer.mixer.num_kv_heads, layer.mixer.head_dim)
            members.setdefault(key, []).append(index)
    names = _names([kind for kind, *_ in members])
    return tuple(
        CacheGroup(name=name, kind=kind, window=window, layers=tuple(layers), num_kv_heads=num_kv_heads, head_dim=head_dim)
        for name, ((kind, window, num_kv_heads, head_dim), layers) in zip(names, members.items(), strict=True)
    )


def group_of_layers(spec: ModelSpec) -> list[str | None]:
    """The name of each layer's group; of a layer that reads another's cache, that one's; None without a cache."""
    own = {layer: group.name for group in cache_groups(spec) for layer in group.layers}
    return [own.get(index if layer.mixer.source is None else layer.mixer.source) for index, layer in enumerate(spec.layers)]


def _visible(spec: ModelSpec, index: int) -> tuple[Kind, int]:
    """What tokens see of a layer's cache, in that layer and in those that read its cache; all of it if they differ."""
    readers = [layer.mixer for place, layer in enumerate(spec.layers) if index in (place, layer.mixer.source)]
    kinds = {_kind(mixer, spec.max_context) for mixer in readers}
    return kinds.pop() if len(kinds) == 1 else ("full", 0)


def _kind(mixer: Mixer, max_context: int) -> tuple[Kind, int]:
    """A window that is not smaller than the context hides nothing."""
    if isinstance(mixer, LatentAttentionSpec):
        return "latent", 0
    if 0 < mixer.window < max_context:
        return "window", mixer.window
    return ("chunk", mixer.chunk) if 0 < mixer.chunk < max_context else ("full", 0)


def _names(kinds: list[Kind]) -> list[str]:
    return [kind if kinds.count(kind) == 1 else f"{kind}{kinds[: index + 1].count(kind)}" for index, kind in enumerate(kinds)]
