"""Granite: Llama with a multiplier in each place where one can be."""

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable, fused_gate_up, gate_up_of_shared
from ..parts.mlp import MLPSpec
from ..parts.moe import MoESpec
from ..settings import Settings, brief
from ..spec import Channel, EmbedSpec, HeadSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import all_experts, router
from .hf import DAMAGED, around, attention, before, dense, mlp, num_layers, rms, rope, window_size, windows_by_type
from .llama import COMMON, GATE_UP, IGNORED, LAYER, NAMES, SOURCES, either, parted


def _granite(settings: Settings, *, channel: Channel | None = None, **layers: Any) -> ModelSpec:
    bias = settings.flag("attention_bias", False)
    scale = settings.number("attention_multiplier", 1.0)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, scale=scale, **layers),
        channel=mlp(settings, bias=settings.flag("mlp_bias", False)) if channel is None else channel,
        norms=before(rms(settings)),
        final=rms(settings),
        multiplier=settings.number("residual_multiplier", 1.0),
        embed=EmbedSpec(multiplier=settings.number("embedding_multiplier", 1.0)),
        head=HeadSpec(multiplier=1 / settings.number("logits_scaling", 1.0)),
    )


def _with_windows(settings: Settings) -> dict[str, Any]:
    """Three layers of four with a window, and a base of the rotary embedding for every layer, 0 for none. Fields of `attention`."""
    count, table = num_layers(settings), rope(settings)
    windows = windows_by_type(settings, window_size(settings), lambda index: index % 4 != 0)
    thetas = settings.numbers("layer_rope_theta") if "layer_rope_theta" in settings else [table.theta] * count
    if len(thetas) != count:
        raise CheckpointError(f"{settings.source}: layer_rope_theta has {len(thetas)} entries for {count} layers", hint=DAMAGED)
    ropes = [replace(table, theta=theta) if theta else None for theta in thetas]
    return {"ropes": ropes, "windows": windows, "sinks": True}


def _granite_swa(settings: Settings) -> ModelSpec:
    return _granite(settings, **_with_windows(settings))


def _granite_hybrid(settings: Settings) -> ModelSpec:
    """Granite 4 without state layers; some have no positions, some have experts beside what is the channel of others."""
    if set(settings.raw("layer_types") or settings.raw("layers_block_type") or ()) - {"attention", "full_attention"}:
        raise UnsupportedModelError(
            f"{settings.source}: layer_types = {brief(settings.raw('layer_types'))} is not supported",
            hint="of Granite 4, models with attention alone are",
        )
    settings.ignore("layer_types", "layers_block_type", "normalization_function", "init_method", "shared_intermediate_size")
    settings.ignore(*_UNUSED_BY_DENSE, *(f"mamba_{name}" for name in _MAMBA))
    rotates = settings.text("position_embedding_type", "nope") == "rope"
    ropes = None if rotates else (None,) * num_layers(settings)
    settings.ignore("rope_theta", "rope_scaling", "rope_parameters", "intermediate_size")
    has_experts = settings.integer("num_local_experts", 0) > 0
    return _granite(settings, ropes=ropes, channel=_experts(settings) if has_experts else _shared(settings))


def _shared(settings: Settings) -> MLPSpec:
    return mlp(settings, size=settings.integer("shared_intermediate_size"), bias=settings.flag("mlp_bias", False))


def _experts(settings: Settings) -> MoESpec:
    """Softmax over the chosen; of the kind "shared", an MLP beside the experts."""
    made = router(settings, "num_local_experts", score="identity", weighting="softmax")
    has_shared = settings.integer("shared_intermediate_size", 0) > 0
    return MoESpec(router=made, experts=mlp(settings), shared=_shared(settings) if has_shared else None)


def _granite_moe(settings: Settings) -> ModelSpec:
    return _granite(settings, channel=_experts(settings))


def _granite_moe_swa(settings: Settings) -> ModelSpec:
    return _granite(settings, channel=_experts(settings), **_with_windows(settings))


def _hyperclovax(settings: Settings) -> ModelSpec:
    """Granite's multipliers, but that logits are multiplied and not divided, and norms after mixer and channel too."""
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    scale = settings.number("attention_multiplier") if "attention_multiplier" in settings else None
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, scale=scale),
        channel=mlp(settings, bias=settings.flag("mlp_bias", False)),
        norms=around(norm) if settings.flag("use_post_norm") else before(norm),
        final=norm,
        multiplier=settings.number("residual_multiplier", 1.0),
        embed=EmbedSpec(multiplier=settings.number("embedding_multiplier", 1.0)),
        head=HeadSpec(multiplier=settings.number("logits_scaling", 1.0)),
    )


def minicpm_multipliers(settings: Settings) -> dict[str, Any]:
    """The same by other names: of embeddings, of what layers add (less the more there are), and of logits. Fields of `dense`."""
    depth = settings.number("scale_depth") / settings.integer("num_hidden_layers") ** 0.5 if "scale_depth" in settings else 1.0
    size = settings.integer("hidden_size")
    return {
        "multiplier": depth,
        "embed": EmbedSpec(multiplier=settings.number("scale_emb", 1.0)),
        "head": HeadSpec(multiplier=settings.number("dim_model_base", size) / size),
    }


def _minicpm(settings: Settings) -> ModelSpec:
    mixers, norm = attention(settings), rms(settings)
    return dense(settings, mixers=mixers, channel=mlp(settings), norms=before(norm), final=norm, **minicpm_multipliers(settings))


_ATTENTION = {"attention", "full_attention"}
_UNUSED_BY_DENSE = ("num_experts_per_tok", "router_aux_loss_coef", "output_router_logits", "attention_head_dim", "time_step_limit")
_MAMBA = ("n_heads", "n_groups", "d_state", "d_head", "d_conv", "expand", "chunk_size", "conv_bias", "proj_bias")
_SHARED_MLP = parted(GATE_UP, LAYER + "shared_mlp.input_linear", fused_gate_up, ["weight"])
_BLOCK = LAYER + "block_sparse_moe."
_EXPERTS: dict[str, Entry] = (
    {"layers.{}.mlp.router.weight": (_BLOCK + "router.layer.weight", _BLOCK + "router.weight")}
    | either(
        all_experts(_BLOCK + "input_linear.weight", _BLOCK + "output_linear.weight"),
        all_experts(_BLOCK + "experts.gate_up_proj", _BLOCK + "experts.down_proj"),
    )
    | parted("layers.{}.mlp.shared.gate,up", LAYER + "shared_mlp.input_linear", gate_up_of_shared, ["weight"])
    | {"layers.{}.mlp.shared.down.weight": LAYER + "shared_mlp.output_linear.weight"}
)
_AROUND: dict[str, Entry] = {
    "layers.{}.attention_post_norm.weight": LAYER + "post_norm1.weight",
    "layers.{}.mlp_post_norm.weight": LAYER + "post_norm2.weight",
}
_MOE_NAMES = NameTable(sources=SOURCES | _EXPERTS, ignored=IGNORED)
_SWA = COMMON | {
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "sliding_window": 128,
    "attention_multiplier": 1.0,
}
HF = (
    HFEntry(model_types=("granite",), defaults=COMMON | {"max_position_embeddings": 2048}, read=_granite, names=NAMES),
    HFEntry(model_types=("granite_swa",), defaults=_SWA, read=_granite_swa, names=NAMES),
    HFEntry(
        model_types=("granitemoe_swa",),
        defaults=COMMON | {"max_position_embeddings": 2048, "sliding_window": 128, "num_local_experts": 8, "num_experts_per_tok": 2},
        read=_granite_moe_swa,
        names=_MOE_NAMES,
    ),
    HFEntry(
        model_types=("granitemoehybrid",),
        defaults=COMMON | {"max_position_embeddings": 2048, "shared_intermediate_size": 1024},
        read=_granite_hybrid,
        names=NameTable(
            sources=SOURCES | _SHARED_MLP | {"layers.{}.mlp.down.weight": LAYER + "shared_mlp.output_linear.weight"} | _EXPERTS,
            ignored=IGNORED,
        ),
    ),
    HFEntry(
        model_types=("granitemoe", "granitemoeshared"),
        defaults=COMMON | {"max_position_embeddings": 2048, "num_local_experts": 8, "num_experts_per_tok": 2},
        read=_granite_moe,
        names=_MOE_NAMES,
    ),
    HFEntry(
        model_types=("hyperclovax",),
        defaults=COMMON | {"max_position_embeddings": 2048, "use_post_norm": True},
        read=_hyperclovax,
        names=NameTable(sources=SOURCES | _AROUND, ignored=IGNORED),
    ),
    HFEntry(
        model_types=("minicpm",), defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}, read=_minicpm, names=NAMES
    ),
)


def _granite_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {
        "model_type": "granite",
        "attention_multiplier": settings.number("attention.scale", 1.0),
        "embedding_multiplier": settings.number("embedding_scale", 1.0),
        "residual_multiplier": settings.number("residual_scale", 1.0),
        "logits_scaling": settings.number("logit_scale", 1.0),
        "attention_bias": gguf.has_bias(found, "attn_q"),
        "mlp_bias": gguf.has_bias(found, "ffn_gate"),
    }


def _granite_moe_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return (
        _granite_of_gguf(settings, found)
        | gguf.experts(settings, count="num_local_experts")
        | {"model_type": "granitemoe", "shared_intermediate_size": settings.integer("expert_shared_feed_forward_length", 0)}
    )


def _minicpm_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found)
    count, size = values["num_hidden_layers"], values["hidden_size"]
    return values | {
        "model_type": "minicpm",
        "scale_emb": settings.number("embedding_scale", 12.0),
        "scale_depth": settings.number("residual_scale", 1.4 / count**0.5) * count**0.5,
        "dim_model_base": size / settings.number("logit_scale", size / 256),
    }


GGUF = (
    GGUFEntry(architectures=("granite",), settings=_granite_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("granitemoe",), settings=_granite_moe_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("minicpm",), settings=_minicpm_of_gguf, names=gguf.INTERLEAVED_NAMES),
)
