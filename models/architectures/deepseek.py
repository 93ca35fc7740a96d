"""Models with latent attention: DeepSeek V2 and V3 and those that follow them, with and without experts."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable, Source, heads_of, keys_values_of_latents
from ..parts.latent_attention import LatentAttentionSpec
from ..parts.moe import ExpertGroupsSpec, MoESpec, RouterSpec
from ..parts.norm import NormSpec
from ..parts.rope import yarn_magnitude
from ..settings import Settings
from ..spec import LayerSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import after_the_first, by_layer, router, shared_mlp, sigmoid_router
from .glm_moe import DEEPSEEK_SOURCES
from .granite import minicpm_multipliers
from .hf import DAMAGED, before, dense, mlp, num_heads, num_layers, rms, rope, rope_settings, temperature
from .llama import COMMON, IGNORED, LAYER, either, renamed

_MLP, _ATTENTION = LAYER + "mlp.", LAYER + "self_attn."
_LATENTS_EPS = 1e-6
"""Of the norms inside attention, whatever a configuration says of the others."""
_LATENTS: dict[str, Entry] = {
    **renamed(
        {
            "layers.{}.attention.q_down": _ATTENTION + "q_a_proj",
            "layers.{}.attention.q_norm": _ATTENTION + "q_a_layernorm",
            "layers.{}.attention.latent": _ATTENTION + "kv_a_proj_with_mqa",
            "layers.{}.attention.latent_norm": _ATTENTION + "kv_a_layernorm",
        }
    ),
    "layers.{}.attention.q.weight": (_ATTENTION + "q_b_proj.weight", _ATTENTION + "q_proj.weight"),
    "layers.{}.attention.key_up.weight": Source(
        tensor=_ATTENTION + "kv_b_proj.weight", rows=keys_values_of_latents("keys"), turned=heads_of
    ),
    "layers.{}.attention.value_up.weight": Source(tensor=_ATTENTION + "kv_b_proj.weight", rows=keys_values_of_latents("values")),
}
_SOURCES: dict[str, Entry] = DEEPSEEK_SOURCES | _LATENTS
_NAMES = NameTable(sources=_SOURCES, ignored=IGNORED, further_layers=LAYER)
_INTERLEAVED = replace(_NAMES, interleaved=True)
_AXK1_NAMES = replace(
    _INTERLEAVED,
    sources=either(_SOURCES, {"layers.{}.mlp_post_norm.weight": (LAYER + "post_mlp_layernorm.weight", _MLP + "post_mlp_layernorm.weight")}),
    # Of layers without experts, where nothing reads it.
    ignored=(*IGNORED, LAYER + "post_mlp_layernorm.weight"),
)


def _latent(settings: Settings, **fields: Any) -> tuple[LatentAttentionSpec, ...]:
    """The attention of every layer. fields: of LatentAttentionSpec, beyond what the configuration says.

    `rope_dimension_count` is what GGUF calls what config.json calls `qk_rope_head_dim`. Raises UnsupportedModelError where pairs that
    rotate are not neighbours: no released model has them.
    """
    if not settings.flag("rope_interleave", True):
        raise UnsupportedModelError(
            f"{settings.source}: rope_interleave = false is not supported of this type of model", hint="released models have it true"
        )
    bias, table, plain = settings.flag("attention_bias", False), rope(settings), settings.integer("qk_nope_head_dim")
    settings.ignore("num_key_value_heads", "head_dim", "qk_head_dim", "q_head_dim")
    spec = LatentAttentionSpec(
        num_heads=num_heads(settings),
        rank=settings.integer("kv_lora_rank"),
        query_rank=settings.integer("q_lora_rank", 0),
        plain_dim=plain,
        value_dim=settings.integer("v_head_dim", settings.integer("hidden_size") // num_heads(settings)),
        rope=table,
        scale=(plain + table.width) ** -0.5 * _magnitude(settings) ** 2,
        norm=NormSpec(kind="rms", eps=_LATENTS_EPS),
        bias=bias,
        output_bias=bias,
        **fields,
    )
    return (spec,) * num_layers(settings)


def _magnitude(settings: Settings) -> float:
    """What queries and keys both are multiplied with where the context is stretched, their parts without positions too."""
    scaling = Settings(rope_settings(settings), f"{settings.source}, rope_parameters")
    if scaling.text("rope_type", scaling.text("type", "default")) == "default" or "mscale_all_dim" not in scaling:
        return 1.0
    return yarn_magnitude(scaling.number("factor"), scaling.number("mscale_all_dim"))


def _is_sparse(settings: Settings) -> Callable[[int], bool]:
    """Whether a layer has experts: after the first dense ones, every so manieth."""
    follows, every = after_the_first(settings), settings.integer("moe_layer_freq", 1)
    return lambda index: follows(index) and index % every == 0


def _model(settings: Settings, made: RouterSpec, **fields: Any) -> ModelSpec:
    """made: the router. fields: of LatentAttentionSpec."""
    settings.ignore("num_nextn_predict_layers", "num_mtp_layers", "ep_size", "aux_loss_alpha", "seq_aux", "scoring_func", "topk_method")
    size, norm = settings.integer("moe_intermediate_size"), rms(settings)
    sparse = MoESpec(
        router=made, experts=mlp(settings, size=size), shared=shared_mlp(settings, settings.integer("n_shared_experts", 0), size)
    )
    return dense(
        settings,
        mixers=_latent(settings, **fields),
        channel=by_layer(settings, mlp(settings), sparse, _is_sparse(settings)),
        norms=before(norm),
        final=norm,
    )


def _groups(settings: Settings, **fields: Any) -> ExpertGroupsSpec | None:
    count = settings.integer("n_group", 1)
    kept = settings.integer("topk_group", 1)
    return ExpertGroupsSpec(count=count, kept=kept, **fields) if count > 1 else None


def _v2(settings: Settings) -> ModelSpec:
    """A softmax; groups, where they are used, count by their best expert. Raises UnsupportedModelError for normalized weights."""
    method = settings.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise UnsupportedModelError(
            f"{settings.source}: experts chosen by {method!r} are not supported here", hint="greedy and group_limited_greedy are"
        )
    if settings.flag("norm_topk_prob", False) or settings.text("scoring_func", "softmax") != "softmax":
        raise UnsupportedModelError(
            f"{settings.source}: weights of experts other than those of a plain softmax are not supported here",
            hint="of model type deepseek_v3 they are",
        )
    groups = _groups(settings, best=1, zero_outside=True)
    made = router(
        settings,
        "n_routed_experts",
        score="softmax",
        groups=groups if method == "group_limited_greedy" else None,
        scale=settings.number("routed_scaling_factor", 1.0),
    )
    if settings.flag("mlp_bias", False):
        raise UnsupportedModelError(f"{settings.source}: mlp_bias is not supported of this type of model", hint="released models have none")
    return _model(settings, made)


def _v3(settings: Settings) -> ModelSpec:
    return _model(settings, sigmoid_router(settings))


def _glm4_lite(settings: Settings) -> ModelSpec:
    """As DeepSeek-V3. Raises UnsupportedModelError where only a part of what `qk_rope_head_dim` counts rotates."""
    given = rope_settings(settings).get("partial_rotary_factor", settings.number("partial_rotary_factor"))
    if given != 1:
        raise UnsupportedModelError(f"{settings.source}: partial_rotary_factor = {given} is not supported here", hint="1 is")
    return _v3(settings)


def _axk1(settings: Settings) -> ModelSpec:
    """What experts give is normalized, what dense channels give is not."""
    spec = _v3(settings)
    after = replace(spec.layers[0].norms, after_channel=rms(settings))
    layers = [replace(layer, norms=after) if isinstance(layer.channel, MoESpec) else layer for layer in spec.layers]
    return replace(spec, layers=tuple(layers))


def _with_biases_that_are_there(spec: ModelSpec, tensors: Collection[str]) -> ModelSpec:
    """A.X-K1 may be published without the biases of its routers' choices, which are zeros then."""
    there = {int(name.split(".")[2]) for name in tensors if name.endswith("e_score_correction_bias")}

    def fitting(index: int, layer: LayerSpec) -> LayerSpec:
        channel = layer.channel
        if index in there or not isinstance(channel, MoESpec):
            return layer
        return replace(layer, channel=replace(channel, router=replace(channel.router, choice_bias=False)))

    return replace(spec, layers=tuple(fitting(index, layer) for index, layer in enumerate(spec.layers)))


def _mistral4(settings: Settings) -> ModelSpec:
    """A softmax with groups, normalized; queries grow with their position. Raises CheckpointError without the numbers of YaRN."""
    if not rope_settings(settings):
        raise CheckpointError(f"{settings.source} does not give rope_parameters", hint=DAMAGED)
    normalized = settings.flag("norm_topk_prob")
    made = router(
        settings,
        "n_routed_experts",
        score="softmax",
        groups=_groups(settings, zero_outside=True),
        normalized=normalized,
        eps=1e-20 if normalized else 0.0,
        scale=settings.number("routed_scaling_factor"),
    )
    return _model(settings, made, temperature=temperature(settings))


def _youtu(settings: Settings) -> ModelSpec:
    settings.ignore("embedding_initializer_range", "mlp_bias")
    norm = rms(settings)
    return dense(settings, mixers=_latent(settings), channel=mlp(settings), norms=before(norm), final=norm)


def _minicpm3(settings: Settings) -> ModelSpec:
    """Multipliers as in MiniCPM. Its rows lie in halves."""
    norm, channel = rms(settings), mlp(settings, bias=settings.flag("mlp_bias", False))
    return dense(settings, mixers=_latent(settings), channel=channel, norms=before(norm), final=norm, **minicpm_multipliers(settings))


_COMMON: dict[str, Any] = COMMON | {"rope_dimension_count": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "kv_lora_rank": 512}
_V3: dict[str, Any] = _COMMON | {
    "max_position_embeddings": 4096,
    "q_lora_rank": 1536,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
_ALIASES = {"qk_rope_head_dim": "rope_dimension_count", "num_local_experts": "n_routed_experts"}
HF = (
    HFEntry(
        model_types=("deepseek_v2",),
        defaults=_COMMON
        | {
            "max_position_embeddings": 2048,
            "q_lora_rank": 1536,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1407,
            "topk_method": "greedy",
        },
        read=_v2,
        names=_INTERLEAVED,
        aliases=_ALIASES | {"num_experts": "n_routed_experts"},
    ),
    HFEntry(model_types=("deepseek_v3", "kimi_k2"), defaults=_V3, read=_v3, names=_INTERLEAVED, aliases=_ALIASES),
    HFEntry(
        model_types=("glm4_moe_lite",),
        defaults=_V3
        | {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 202752,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "n_routed_experts": 64,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1536,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.8,
            "partial_rotary_factor": 1.0,
        },
        read=_glm4_lite,
        names=_INTERLEAVED,
        aliases=_ALIASES | {"head_dim": "rope_dimension_count"},
    ),
    HFEntry(
        model_types=("axk1",),
        defaults=_V3 | {"max_position_embeddings": 32768, "n_routed_experts": 192, "first_k_dense_replace": 1},
        read=_axk1,
        names=_AXK1_NAMES,
        aliases=_ALIASES,
        fitting=_with_biases_that_are_there,
    ),
    HFEntry(
        model_types=("sarvam_mla",),
        defaults=_V3 | {"q_lora_rank": None, "n_routed_experts": 128, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
        read=_v3,
        names=_INTERLEAVED,
        aliases=_ALIASES | {"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"},
    ),
    HFEntry(
        model_types=("mistral4",),
        defaults=_V3
        | {
            "max_position_embeddings": 1048576,
            "q_lora_rank": 1024,
            "kv_lora_rank": 256,
            "qk_nope_head_dim": 64,
            "n_routed_experts": 128,
            "num_experts_per_tok": 4,
            "first_k_dense_replace": 0,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
        },
        read=_mistral4,
        names=_INTERLEAVED,
        aliases=_ALIASES,
    ),
    HFEntry(
        model_types=("youtu",),
        defaults=_COMMON | {"max_position_embeddings": 131072, "q_lora_rank": 1536, "tie_word_embeddings": True},
        read=_youtu,
        names=_INTERLEAVED,
        aliases=_ALIASES,
    ),
    HFEntry(
        model_types=("minicpm3",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "kv_lora_rank": 256,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 64,
            "rope_dimension_count": 32,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
        },
        read=_minicpm3,
        names=_NAMES,
        aliases=_ALIASES,
    ),
)


_BLOCK = gguf.LAYER
_GGUF_SOURCES: dict[str, Entry] = gguf.SOURCES | {
    "layers.{}.attention.q_down.weight": _BLOCK + "attn_q_a.weight",
    "layers.{}.attention.q_norm.weight": _BLOCK + "attn_q_a_norm.weight",
    "layers.{}.attention.q.weight": (_BLOCK + "attn_q_b.weight", _BLOCK + "attn_q.weight"),
    "layers.{}.attention.latent.weight": _BLOCK + "attn_kv_a_mqa.weight",
    "layers.{}.attention.latent_norm.weight": _BLOCK + "attn_kv_a_norm.weight",
    # One matrix in old files.
    "layers.{}.attention.key_up.weight": (
        Source(tensor=_BLOCK + "attn_k_b.weight", split=heads_of),
        Source(tensor=_BLOCK + "attn_kv_b.weight", rows=keys_values_of_latents("keys"), turned=heads_of),
    ),
    "layers.{}.attention.value_up.weight": (
        Source(tensor=_BLOCK + "attn_v_b.weight", split=heads_of),
        Source(tensor=_BLOCK + "attn_kv_b.weight", rows=keys_values_of_latents("values")),
    ),
}


def _of_gguf(softmax: str, settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Of all that are converted as DeepSeek V2 is, which the router's function tells apart. softmax: the type of those with a softmax."""
    rank, turned = settings.integer("attention.kv_lora_rank"), settings.integer("rope.dimension_count")
    values = gguf.common(settings, found, head_dim=turned)
    new = "attention.key_length_mla" in settings  # else keys and values are as wide as if none were made of latents
    keys = settings.integer("attention.key_length_mla" if new else "attention.key_length")
    values |= {
        "kv_lora_rank": rank,
        "q_lora_rank": settings.integer("attention.q_lora_rank", 0),
        "qk_nope_head_dim": keys - turned,
        "v_head_dim": settings.integer("attention.value_length_mla" if new else "attention.value_length"),
        "first_k_dense_replace": settings.integer("leading_dense_block_count", 0),
        "rope_scaling": {"rope_type": "default", **values["rope_scaling"], **_stretch(settings)},
    }
    settings.ignore("attention.key_length", "attention.value_length")
    if not settings.integer("expert_count", 0):
        settings.ignore("expert_feed_forward_length", "expert_shared_count", "expert_weights_scale", "expert_weights_norm")
        return values | {"model_type": "youtu"}
    gating = settings.integer("expert_gating_func", 0)
    sigmoid = gating == 2 or (not gating and any(name.endswith("exp_probs_b.bias") for name in found.tensors))
    groups = settings.integer("expert_group_count", 1)
    return (
        values
        | gguf.experts(settings, count="n_routed_experts", gating=2 if sigmoid else 1, scaled=True)
        | {
            "model_type": "deepseek_v3" if sigmoid else softmax,
            "n_shared_experts": settings.integer("expert_shared_count", 0),
            "norm_topk_prob": settings.flag("expert_weights_norm", False),
            "n_group": groups,
            "topk_group": settings.integer("expert_group_used_count", 1),
        }
        | ({"topk_method": "group_limited_greedy"} if groups > 1 else {})
    )


def _stretch(settings: Settings) -> dict[str, Any]:
    """How YaRN scales queries and keys, which converters write as a tenth of what config.json says; and by how much queries grow."""
    found: dict[str, Any] = {}
    if multiplier := settings.number("rope.scaling.yarn_log_multiplier", 0.0):
        found["mscale_all_dim"] = round(multiplier * 10, 6)
    if beta := settings.number("attention.temperature_scale", 0.0):
        found["llama_4_scaling_beta"] = beta
    settings.ignore("attention.temperature_length")
    return found


_GGUF_NAMES = NameTable(sources=_GGUF_SOURCES, ignored=gguf.VECTORS, interleaved=True, further_layers=_BLOCK)
GGUF = (
    GGUFEntry(architectures=("deepseek2",), settings=partial(_of_gguf, "deepseek_v2"), names=_GGUF_NAMES),
    GGUFEntry(architectures=("mistral4",), settings=partial(_of_gguf, "mistral4"), names=_GGUF_NAMES),
)
