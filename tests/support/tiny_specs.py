"""Specs of small models, for tests that need one and no checkpoint."""

from typing import Any

from engine.models.parts.attention import AttentionSpec
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.norm import NormSpec
from engine.models.parts.rope import RopeSpec
from engine.models.spec import Channel, LayerNorms, LayerSpec, ModelSpec

NORM = NormSpec(eps=1e-5)


def tiny_layer(*, size: int = 96, channel: Channel | None = None, **mixer: Any) -> LayerSpec:
    """A layer of Llama's kind. size: of its MLP. channel: in place of that. mixer: fields of AttentionSpec."""
    fields: dict[str, Any] = {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "rope": RopeSpec(theta=10000.0, width=16),
        "scale": 0.25,
    } | mixer
    norms = LayerNorms(before_mixer=NORM, before_channel=NORM)
    return LayerSpec(mixer=AttentionSpec(**fields), channel=channel or MLPSpec(size=size), norms=norms)


def tiny_spec(*layers: LayerSpec, **fields: Any) -> ModelSpec:
    """A model of these layers, by default two of `tiny_layer`. fields: of ModelSpec."""
    sizes: dict[str, Any] = {"architecture": "llama", "hidden_size": 64, "vocab_size": 300, "max_context": 128, "final": NORM}
    return ModelSpec(layers=layers or (tiny_layer(), tiny_layer()), **sizes | fields)
