"""Which graph rewrites must find something in a model, from its parts: one that silently missed would make the model slow.

Names are those of the passes in `passes/pipeline.py`. Left out is what depends on sizes or on weight formats.
"""

from collections.abc import Iterable, Iterator

from .parts.attention import QKNormSpec
from .parts.latent_attention import LatentAttentionSpec
from .parts.layer_inputs import LayerInputsSpec
from .parts.mlp import MLPSpec
from .parts.moe import MoESpec
from .parts.norm import NormSpec
from .parts.pooling import PoolingSpec
from .spec import Channel, LayerSpec, Mixer, ModelSpec


def expected_fusions(spec: ModelSpec, *, one_thread: bool) -> frozenset[str]:
    """The passes that must match in a step of this model. one_thread: whether the target is one whose segments run on one thread."""
    found = _everywhere(spec)
    return found | set(_of_one_thread(spec)) if one_thread else found


def _everywhere(spec: ModelSpec) -> frozenset[str]:
    found = set(_of_norms((spec.embed.norm, spec.final)))
    if spec.embed.multiplier != 1.0 or spec.head.multiplier != 1.0:
        found.add("fuse_multiplier")
    if spec.head.softcap > 0:
        found.add("fuse_soft_cap")
    if spec.pooling is not None:
        found.update(_of_pooling(spec.pooling))
    if spec.layer_inputs is not None:
        found.update(_of_layer_inputs(spec.layer_inputs))
    for layer in spec.layers:
        found.update(_of_layer(layer), _of_attention(layer.mixer), _of_channel(layer.channel), _of_sums_of_experts(layer))
    return frozenset(found)


def _of_pooling(pooling: PoolingSpec) -> Iterator[str]:
    for dense in pooling.dense:
        yield from _of_norms((dense.norm,))
        if dense.activation != "none":
            yield "fuse_soft_cap" if dense.activation == "tanh" else "fuse_activation"


def _of_layer_inputs(inputs: LayerInputsSpec) -> Iterator[str]:
    yield from _of_norms((inputs.norm, inputs.post_norm))
    yield from ("fuse_post_norm", "fuse_activation", "fuse_gate")
    if inputs.multiplier != 1.0 or inputs.embed_multiplier != 1.0:
        yield "fuse_multiplier"


def _of_norms(norms: Iterable[NormSpec | None]) -> Iterator[str]:
    for norm in norms:
        if norm is not None:
            yield "fuse_rms_norm" if norm.kind == "rms" else "fuse_layer_norm"


def _of_layer(layer: LayerSpec) -> Iterator[str]:
    norms = layer.norms
    yield from _of_norms((norms.before_mixer, norms.after_mixer, norms.before_channel, norms.after_channel))
    for after in (norms.after_mixer, norms.after_channel):
        if after is None or layer.normalizes_sums:  # the sum is the linear's
            yield "fuse_residual_add"
            if layer.multiplier != 1.0:
                yield "fuse_multiplier"
        elif layer.multiplier == 1.0:
            yield "fuse_post_norm"


def _of_sums_of_experts(layer: LayerSpec) -> Iterator[str]:
    channel = layer.channel
    if isinstance(channel, MoESpec) and channel.norms is None and (layer.norms.after_channel is None or channel.shared is not None):
        yield "combine_experts"


def _of_attention(mixer: Mixer) -> Iterator[str]:
    if isinstance(mixer, LatentAttentionSpec):
        yield "absorb_latent"
        yield from _of_norms((mixer.norm,))
        return
    yield from _of_norms((mixer.output_norm,))
    if mixer.multiplier != 1.0:
        yield "fuse_multiplier"
    if mixer.gate is not None:
        yield "fuse_activation"
        if not mixer.gate.by_head:
            yield "fuse_gate"
    if mixer.qk_norm is not None and mixer.qk_norm.over == "width":
        yield from _of_norms((mixer.qk_norm.norm,))
    late = mixer.qk_norm is not None and mixer.qk_norm.after_rope
    if mixer.rope is not None and mixer.source is None and not late:
        yield "fuse_into_attention"


def _of_one_thread(spec: ModelSpec) -> Iterator[str]:
    """What compilers of other targets fuse themselves."""
    if spec.embed.positions or spec.embed.types:
        yield "fuse_scaled_add"
    for layer in spec.layers:
        mixer, norms = layer.mixer, layer.norms
        inner = layer.channel.experts if isinstance(layer.channel, MoESpec) else layer.channel
        if inner.gated and inner.limit > 0:
            yield "fuse_clamped_gate"
        if layer.scaled:
            yield "fuse_scale"
        is_normed = norms.after_mixer is not None or norms.after_channel is not None
        if is_normed and layer.multiplier != 1.0 and not layer.normalizes_sums:
            yield "fuse_scaled_add"
        if isinstance(mixer, LatentAttentionSpec):
            continue
        if mixer.clip > 0:
            yield "fuse_clip"
        if mixer.gate is not None and mixer.gate.by_head:
            yield "fuse_head_scale"
        normalizes_heads = mixer.qk_norm is not None and mixer.qk_norm.over != "width" and not _is_attentions(mixer.qk_norm)
        if normalizes_heads or (mixer.value_norm is not None and mixer.source is None):
            yield "fuse_head_norm"


def _is_attentions(norm: QKNormSpec) -> bool:
    """Whether the attention operator has this norm."""
    return norm.over == "head" and norm.norm.kind == "rms" and norm.norm.weight


def _of_channel(channel: Channel) -> Iterator[str]:
    if isinstance(channel, MLPSpec):
        yield from _of_mlp(channel)
        return
    yield from ("route_experts", "group_experts")
    yield from _of_norms((channel.router.norm,))
    if channel.norms is not None:
        norms = channel.norms
        yield from _of_norms((norms.before_experts, norms.after_experts, norms.before_shared, norms.after_shared))
        yield "fuse_post_norm"
    if channel.router.softcap > 0:
        yield "fuse_soft_cap"
    yield from _of_mlp(channel.experts)
    if channel.shared is not None:
        yield from _of_mlp(channel.shared)


def _of_mlp(channel: MLPSpec) -> Iterator[str]:
    yield from _of_norms((channel.inner_norm,))
    if channel.activation == "xielu":
        yield "fuse_xielu"
    else:
        yield "fuse_activation"
        if channel.gated:
            yield "fuse_gate"
