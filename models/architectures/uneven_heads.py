"""Mixtures of experts whose layers differ in their heads: MiMo-V2-Flash, Laguna."""

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable
from ..parts.attention import AttentionSpec, GateSpec, QKNormSpec
from ..parts.moe import MoESpec
from ..parts.rope import RopeSpec
from ..settings import Settings
from ..spec import ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import by_layer, router, shared, sigmoid_router
from .glm_moe import DEEPSEEK_SOURCES
from .hf import (
    DAMAGED,
    attention,
    before,
    dense,
    head_size,
    mlp,
    num_heads,
    num_layers,
    rms,
    rope,
    rope_settings,
    window_size,
    windows_by_type,
)
from .llama import COMMON, IGNORED, LAYER, either

_MIMO_SOURCES: dict[str, Entry] = DEEPSEEK_SOURCES | {
    "layers.{}.attention.sinks": (LAYER + "self_attn.sinks", LAYER + "self_attn.attention_sink_bias")
}
_MTP = tuple(
    f"model.mtp.layers.{{}}.{name}"
    for name in (
        *(f"{norm}.weight" for norm in ("enorm", "hnorm", "final_layernorm", "input_layernorm")),
        *(f"{norm}_layernorm.weight" for norm in ("pre_mlp", "post_attention")),
        "eh_proj.weight",
        "self_attn.attention_sink_bias",
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    )
)


def _flags(settings: Settings, name: str, default: list[bool]) -> list[bool]:
    """A list that says something of each layer by 0 and 1."""
    if name not in settings:
        return default
    given = settings.items(name)
    if len(given) != len(default) or any(each not in (0, 1) for each in given):
        raise CheckpointError(f"{settings.source}: {name} is not a 0 or 1 for each of {len(default)} layers", hint=DAMAGED)
    return [bool(each) for each in given]


def _mimo_v2(settings: Settings) -> ModelSpec:
    """Layers with a window have sinks, more key-value heads and a table of their own; values are narrower than keys, and scaled: what
    attention gives is, which is the same. Raises UnsupportedModelError where heads of layers with a window have other sizes."""
    count, norm, size = num_layers(settings), rms(settings), settings.integer("moe_intermediate_size")
    # Models on the hub give how many earlier tokens are seen, which the token itself is not one of.
    earlier = settings.integer("sliding_window_size", 0)
    slides = _flags(settings, "hybrid_layer_pattern", [index > 0 and (index + 1) % 6 != 0 for index in range(count)])
    windows = windows_by_type(settings, earlier + 1 if earlier else window_size(settings), lambda index: slides[index])
    settings.ignore("sliding_window", "attention_chunk_size", "hybrid_block_size", "n_shared_experts", "topk_method")
    for name, usual in (("swa_head_dim", head_size(settings)), ("swa_v_head_dim", settings.integer("v_head_dim"))):
        if settings.integer(name, usual) != usual:
            raise UnsupportedModelError(
                f"{settings.source}: {name} = {settings.raw(name)} is not supported", hint=f"{usual}, as in the other layers, is"
            )
    mixers = attention(
        settings,
        windows=windows,
        ropes=[_table(settings, bool(window)) for window in windows],
        qkv_bias=settings.flag("attention_bias", False),
        value_dim=settings.integer("v_head_dim"),
        multiplier=settings.number("attention_value_scale", 1.0),
    )
    sparse = MoESpec(router=sigmoid_router(settings), experts=mlp(settings, size=size))
    has_experts = _flags(settings, "moe_layer_freq", [index > 0 for index in range(count)])
    return dense(
        settings,
        mixers=_of_their_kind(settings, mixers),
        channel=by_layer(settings, mlp(settings), sparse, lambda index: has_experts[index]),
        norms=before(norm),
        final=norm,
    )


def _table(settings: Settings, slides: bool) -> Any:
    kind, theta = ("sliding_attention", "swa_rope_theta") if slides else ("full_attention", "full_rope_theta")
    return rope(settings, kind, theta_name=theta)


def _of_their_kind(settings: Settings, mixers: tuple[AttentionSpec, ...]) -> tuple[AttentionSpec, ...]:
    """Those that have a window with the heads and the sinks that such layers have, the others with theirs."""
    heads = settings.integer("swa_num_attention_heads", mixers[0].num_heads)
    kv_heads = settings.integer("swa_num_key_value_heads", 2 * mixers[0].num_kv_heads)
    sliding, full = (settings.flag(f"add_{kind}_attention_sink_bias", kind == "swa") for kind in ("swa", "full"))
    return tuple(
        replace(mixer, num_heads=heads, num_kv_heads=kv_heads, sinks=sliding) if mixer.window else replace(mixer, sinks=full)
        for mixer in mixers
    )


def _laguna(settings: Settings) -> ModelSpec:
    """Query heads by layer, a gate of softplus on what attention gives, a table for each type of layer."""
    count, norm, bias = num_layers(settings), rms(settings), settings.flag("attention_bias", False)
    windows = windows_by_type(settings, window_size(settings), lambda index: False)
    settings.ignore("sliding_window")
    if settings.flag("moe_apply_router_weight_on_input", False):
        raise UnsupportedModelError(
            f"{settings.source}: moe_apply_router_weight_on_input = true is not supported of this type of model", hint="false is"
        )
    given, tables = bool(rope_settings(settings)), _laguna_tables(settings)
    mixers = attention(
        settings,
        windows=windows,
        ropes=[rope(settings, kind) if given else tables[kind] for kind in map(_type, windows)],
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=QKNormSpec(norm=norm),
        gate=_laguna_gate(settings),
    )
    heads = settings.raw("num_attention_heads_per_layer") or [num_heads(settings)] * count
    if not isinstance(heads, list) or len(heads) != count or not all(isinstance(each, int) for each in heads):
        raise CheckpointError(f"{settings.source}: num_attention_heads_per_layer is not a number for each of {count} layers", hint=DAMAGED)
    sparse = MoESpec(
        router=router(
            settings,
            score="sigmoid",
            softcap=settings.number("moe_router_logit_softcapping", 0.0),
            choice_bias=True,
            normalized=True,
            scale=settings.number("moe_routed_scaling_factor", 1.0),
        ),
        experts=mlp(settings, size=settings.integer("moe_intermediate_size")),
        shared=mlp(settings, size=settings.integer("shared_expert_intermediate_size")),
    )
    return dense(
        settings,
        mixers=[replace(mixer, num_heads=own) for mixer, own in zip(mixers, heads, strict=True)],
        channel=by_layer(settings, mlp(settings), sparse, lambda index: index > 0),
        norms=before(norm),
        final=norm,
    )


def _type(window: int) -> str:
    return "sliding_attention" if window else "full_attention"


def _laguna_tables(settings: Settings) -> dict[str, RopeSpec]:
    """Where the configuration has none."""
    size = head_size(settings)
    return {
        "full_attention": RopeSpec(theta=500000.0, width=size // 2),
        "sliding_attention": RopeSpec(theta=10000.0, width=size),
    }


def _laguna_gate(settings: Settings) -> GateSpec:
    """Raises UnsupportedModelError for gates of another kind, and where layers differ."""
    given = settings.raw("gating")
    kinds = {str(each).replace("_", "-") for each in [given, *(settings.raw("gating_types") or ())] if each is not True}
    kinds |= {"per-head"} if given is True else set()
    if len(kinds) != 1 or not kinds <= {"per-head", "per-element"}:
        raise UnsupportedModelError(
            f"{settings.source}: gates of attention that are {', '.join(sorted(kinds))} are not supported",
            hint="per-head or per-element, the same in all layers, are",
        )
    return GateSpec(function="softplus", by_head=kinds == {"per-head"})


HF = (
    HFEntry(
        model_types=("laguna",),
        defaults=COMMON
        | {
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": 512,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "gating": True,
            "partial_rotary_factor": 1.0,
        },
        read=_laguna,
        names=NameTable(
            sources=DEEPSEEK_SOURCES
            | either(shared(LAYER + "mlp.shared_experts"), shared(LAYER + "mlp.shared_expert"))
            | {
                "layers.{}.attention.gate.weight": LAYER + "self_attn.g_proj.weight",
                "layers.{}.mlp.router.choice_bias": (
                    LAYER + "mlp.gate.e_score_correction_bias",
                    LAYER + "mlp.experts.e_score_correction_bias",
                ),
            },
            ignored=IGNORED,
        ),
        aliases={"num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("mimo_v2_flash",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "full_rope_theta": 5000000.0,
            "swa_rope_theta": 10000.0,
            "partial_rotary_factor": 0.334,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 4,
            "head_dim": 192,
            "v_head_dim": 128,
            "attention_value_scale": 0.707,
            "sliding_window": 129,
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
        },
        read=_mimo_v2,
        names=NameTable(sources=_MIMO_SOURCES, ignored=(*IGNORED, *_MTP)),
        aliases={"num_local_experts": "n_routed_experts", "layernorm_epsilon": "rms_norm_eps", "rope_theta": "full_rope_theta"},
    ),
)


def _mimo_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Key-value heads are given by layer; which layers have experts, their tensors say."""
    slides, heads = settings.items("attention.sliding_window_pattern"), settings.items("attention.head_count_kv")
    if len(slides) != len(heads):
        raise CheckpointError(
            f"{settings.source}: attention.sliding_window_pattern has {len(slides)} entries, attention.head_count_kv {len(heads)}",
            hint=DAMAGED,
        )
    types = ["sliding_attention" if each else "full_attention" for each in slides]
    values = gguf.common(settings, found, head_dim=settings.integer("attention.key_length"), kv_heads=0)
    count = values["num_hidden_layers"]
    by_type = {kind: {each for each, own in zip(heads, types, strict=True) if own == kind} for kind in set(types)}
    if any(len(each) > 1 for each in by_type.values()):
        raise UnsupportedModelError(
            f"{settings.source}: attention.head_count_kv differs between layers that see the same", hint="released models have it equal"
        )
    full, sliding = (next(iter(by_type.get(f"{kind}_attention", ())), 0) for kind in ("full", "sliding"))
    return (
        values
        | gguf.experts(settings, count="n_routed_experts", gating=2, scaled=True)
        | gguf.ropes_by_type(settings, values)
        | {
            "model_type": "mimo_v2_flash",
            "num_key_value_heads": full or sliding,
            "swa_num_key_value_heads": sliding or full,
            "v_head_dim": settings.integer("attention.value_length"),
            "attention_value_scale": settings.number("attention.value_scale", 1.0),
            "sliding_window": settings.integer("attention.sliding_window"),
            "layer_types": types[:count],
            "mlp_layer_types": ["sparse" if f"blk.{layer}.ffn_gate_inp.weight" in found.tensors else "dense" for layer in range(count)],
            "n_group": settings.integer("expert_group_count", 1),
            "topk_group": settings.integer("expert_group_used_count", 1),
            "norm_topk_prob": settings.flag("expert_weights_norm", True),
        }
    )


GGUF = (GGUFEntry(architectures=("mimo2",), settings=_mimo_of_gguf, names=replace(gguf.NAMES, further_layers=gguf.LAYER)),)
