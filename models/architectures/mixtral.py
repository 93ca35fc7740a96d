"""Models with experts whose routers are softmaxes: Mixtral, Qwen 2 and 3, OLMoE, ERNIE 4.5, Hunyuan, gpt-oss."""

from typing import Any

from ...errors import UnsupportedModelError
from ..names import Entry, NameTable, Source, alternating_gate_up_of_experts
from ..parts.attention import QKNormSpec
from ..parts.mlp import MLPSpec
from ..parts.moe import MoESpec
from ..parts.rope import RopeSpec
from ..settings import Settings
from ..spec import ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import all_experts, biases_of_experts, by_layer, checked_router, each_expert, router, shared, shared_mlp
from .hf import after, attention, before, dense, head_size, mlp, num_layers, rms, rope, rope_settings, window_size, windows_by_type
from .llama import COMMON, IGNORED, LAYER, SOURCES, either

_MLP = LAYER + "mlp."
EXPERTS: dict[str, Entry] = either(each_expert(_MLP + "experts"), all_experts(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj"))
ROUTER: dict[str, Entry] = {"layers.{}.mlp.router.weight": _MLP + "gate.weight"}
_QWEN_SOURCES: dict[str, Entry] = (
    SOURCES | ROUTER | EXPERTS | shared(_MLP + "shared_expert") | {"layers.{}.mlp.shared_gate.weight": _MLP + "shared_expert_gate.weight"}
)
_QWEN_NAMES = NameTable(sources=_QWEN_SOURCES, ignored=IGNORED)
_BLOCK = LAYER + "block_sparse_moe."
_MIXTRAL_NAMES = NameTable(
    sources=SOURCES
    | {"layers.{}.mlp.router.weight": (_BLOCK + "gate.weight", _MLP + "gate.weight")}
    | either(each_expert(_BLOCK + "experts", ("w1", "w3", "w2")), EXPERTS),
    ignored=IGNORED,
)


def _mixtral(settings: Settings) -> ModelSpec:
    windows = (window_size(settings),) * num_layers(settings)
    channel = MoESpec(router=router(settings, "num_local_experts", normalized=True), experts=mlp(settings))
    return dense(settings, mixers=attention(settings, windows=windows), channel=channel, norms=before(rms(settings)), final=rms(settings))


def _qwen_windows(settings: Settings) -> tuple[int, ...]:
    window = window_size(settings) if settings.flag("use_sliding_window", False) else 0
    settings.ignore("sliding_window")
    first = settings.integer("max_window_layers", 0)
    return windows_by_type(settings, window, lambda index: index >= first)


def _qwen_channels(settings: Settings, **fields: Any) -> Any:
    """Every `decoder_sparse_step`-th layer has experts, but for those in `mlp_only_layers`."""
    step, only = max(settings.integer("decoder_sparse_step", 1), 1), settings.raw("mlp_only_layers") or []
    sparse = MoESpec(
        router=router(settings, normalized=settings.flag("norm_topk_prob", False)),
        experts=mlp(settings, size=settings.integer("moe_intermediate_size")),
        **fields,
    )
    return by_layer(settings, mlp(settings), sparse, lambda index: index not in only and (index + 1) % step == 0)


def _qwen2_moe(settings: Settings) -> ModelSpec:
    size = settings.integer("shared_expert_intermediate_size")
    return dense(
        settings,
        mixers=attention(settings, windows=_qwen_windows(settings), qkv_bias=settings.flag("qkv_bias", True)),
        channel=_qwen_channels(settings, shared=mlp(settings, size=size), shared_gate=True),
        norms=before(rms(settings)),
        final=rms(settings),
    )


def _qwen3_moe(settings: Settings) -> ModelSpec:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    window = window_size(settings) if settings.flag("use_sliding_window", False) else 0
    settings.ignore("sliding_window", "max_window_layers")
    windows = (window,) * num_layers(settings)
    mixers = attention(settings, windows=windows, qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=norm))
    return dense(settings, mixers=mixers, channel=_qwen_channels(settings), norms=before(norm), final=norm)


def _olmoe_channel(settings: Settings) -> MoESpec:
    return MoESpec(router=router(settings, normalized=settings.flag("norm_topk_prob", False)), experts=mlp(settings))


def _olmoe(settings: Settings) -> ModelSpec:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    qk_norm = QKNormSpec(norm=norm, over="width")
    mixers = attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm, clip=settings.number("clip_qkv", 0.0))
    return dense(settings, mixers=mixers, channel=_olmoe_channel(settings), norms=before(norm), final=norm)


def _flex_olmo(settings: Settings) -> ModelSpec:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    mixers = attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=norm, over="width"))
    return dense(settings, mixers=mixers, channel=_olmoe_channel(settings), norms=after(norm), final=norm)


def _ernie(settings: Settings) -> ModelSpec:
    bias = settings.flag("use_bias", False)
    first, last = settings.integer("moe_layer_start_index", 1), settings.integer("moe_layer_end_index", -1)
    step, last = settings.integer("moe_layer_interval", 1), num_layers(settings) - 1 if last == -1 else last
    size, least = settings.integer("moe_intermediate_size"), settings.number("moe_norm_min", 1e-12)
    sparse = MoESpec(
        router=router(settings, "moe_num_experts", "moe_k", choice_bias=True, normalized=True, least=least),
        experts=mlp(settings, size=size, bias=bias),
        shared=shared_mlp(settings, settings.integer("moe_num_shared_experts", 0), size, bias=bias),
    )
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias),
        channel=by_layer(settings, mlp(settings, bias=bias), sparse, lambda index: (index + 1) % step == 0 and first <= index <= last),
        norms=before(rms(settings)),
        final=rms(settings),
    )


def _of_layer(settings: Settings, name: str, index: int) -> int:
    """A number that may be given for each layer."""
    given = settings.raw(name)
    if isinstance(given, list) and index < len(given) and isinstance(given[index], int):
        return int(given[index])
    return settings.integer(name)


def _hunyuan(settings: Settings) -> ModelSpec:
    bias = settings.flag("attention_bias", False)
    settings.ignore("router_aux_loss_coef", "output_router_logits", "use_qk_norm")
    channels = tuple(
        MoESpec(
            router=checked_router(
                settings, _of_layer(settings, "num_experts", index), _of_layer(settings, "moe_topk", index), normalized=True
            ),
            experts=mlp(settings),
            shared=mlp(settings),
        )
        for index in range(num_layers(settings))
    )
    mixers = attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=rms(settings), after_rope=True))
    return dense(settings, mixers=mixers, channel=channels, norms=before(rms(settings)), final=rms(settings))


def _gpt_oss(settings: Settings) -> ModelSpec:
    """Softmax over the chosen, gates of a sharper sigmoid, clamped, and `up` plus one."""
    alpha = settings.number("swiglu_alpha", 1.702)
    if alpha != 1.702:
        raise UnsupportedModelError(f"{settings.source}: swiglu_alpha = {alpha} is not supported", hint="1.702 is")
    bias = settings.flag("attention_bias", True)
    windows = windows_by_type(settings, window_size(settings), lambda index: index % 2 == 0)
    settings.ignore("experts_per_token", "initial_context_length", "hidden_act")
    experts = MLPSpec(
        size=settings.integer("intermediate_size"),
        activation="quick_gelu",
        bias=True,
        limit=settings.number("swiglu_limit", 7.0),
        up_plus=1.0,
    )
    return dense(
        settings,
        mixers=attention(settings, windows=windows, qkv_bias=bias, output_bias=bias, sinks=True),
        channel=MoESpec(router=router(settings, "num_local_experts", bias=True, score="identity", weighting="softmax"), experts=experts),
        norms=before(rms(settings)),
        final=rms(settings),
    )


_QWEN = {
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
}


def _mellum(settings: Settings) -> ModelSpec:
    """Qwen 3 whose layers each say whether they have a window and which channel; a table of the rotary embedding for each type of layer."""
    windows, norm = windows_by_type(settings, window_size(settings), lambda index: False), rms(settings)
    settings.ignore("num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types")
    sparse = MoESpec(
        router=router(settings, normalized=settings.flag("norm_topk_prob", True)),
        experts=mlp(settings, size=settings.integer("moe_intermediate_size")),
    )
    bias, given = settings.flag("attention_bias", False), bool(rope_settings(settings))
    tables = {
        kind: rope(settings, kind) if given else RopeSpec(theta=theta, width=head_size(settings))
        for kind, theta in (("sliding_attention", 10000.0), ("full_attention", 500000.0))
    }
    return dense(
        settings,
        mixers=attention(
            settings,
            windows=windows,
            ropes=[tables["sliding_attention" if window else "full_attention"] for window in windows],
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=QKNormSpec(norm=norm),
        ),
        channel=by_layer(settings, mlp(settings), sparse, lambda index: True),
        norms=before(norm),
        final=norm,
    )


HF = (
    HFEntry(
        model_types=("mellum",),
        defaults=COMMON
        | {
            "max_position_embeddings": 131072,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "sliding_window": 1024,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 896,
            "partial_rotary_factor": 1.0,
        },
        read=_mellum,
        names=NameTable(sources=_QWEN_SOURCES, ignored=IGNORED, further_layers=LAYER),
        aliases={"num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("mixtral",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        read=_mixtral,
        names=_MIXTRAL_NAMES,
        aliases={"num_experts": "num_local_experts"},
    ),
    HFEntry(
        model_types=("qwen2_moe",),
        defaults=COMMON
        | _QWEN
        | {
            "max_window_layers": 28,
            "num_key_value_heads": 16,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "num_experts_per_tok": 4,
        },
        read=_qwen2_moe,
        names=_QWEN_NAMES,
    ),
    HFEntry(
        model_types=("qwen3_moe",),
        defaults=COMMON | _QWEN | {"num_key_value_heads": 4, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
        read=_qwen3_moe,
        names=_QWEN_NAMES,
        aliases={"num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("olmoe",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_experts": 64, "num_experts_per_tok": 8},
        read=_olmoe,
        names=_QWEN_NAMES,
        aliases={"num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("flex_olmo",),
        defaults=COMMON | {"rope_theta": 500000.0, "max_position_embeddings": 4096, "num_experts": 7, "num_experts_per_tok": 5},
        read=_flex_olmo,
        names=NameTable(
            sources=_QWEN_SOURCES
            | {
                "layers.{}.attention_post_norm.weight": LAYER + "post_attention_layernorm.weight",
                "layers.{}.mlp_post_norm.weight": LAYER + "post_feedforward_layernorm.weight",
            },
            ignored=IGNORED,
        ),
        aliases={"num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("ernie4_5_moe",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 1536,
            "moe_k": 6,
            "moe_num_experts": 64,
            "moe_num_shared_experts": 2,
        },
        read=_ernie,
        names=NameTable(
            sources=SOURCES
            | ROUTER
            | EXPERTS
            | shared(_MLP + "shared_experts")
            | {"layers.{}.mlp.router.choice_bias": Source(tensor=_MLP + "moe_statics.e_score_correction_bias", split=lambda layer: 1)},
            ignored=IGNORED,
            interleaved=True,
        ),
        aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    ),
    HFEntry(
        model_types=("hunyuan_v1_moe",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_experts": 1, "moe_topk": 1},
        read=_hunyuan,
        names=NameTable(
            sources=SOURCES
            | {
                "layers.{}.mlp.router.weight": _MLP + "gate.wg.weight",
                "layers.{}.attention.q_norm.weight": LAYER + "self_attn.query_layernorm.weight",
                "layers.{}.attention.k_norm.weight": LAYER + "self_attn.key_layernorm.weight",
            }
            | EXPERTS
            | shared(_MLP + "shared_mlp"),
            ignored=IGNORED,
        ),
        aliases={"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("gpt_oss",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "max_position_embeddings": 131072,
            "head_dim": 64,
            "num_key_value_heads": 8,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
        read=_gpt_oss,
        names=NameTable(
            sources=SOURCES
            | {f"layers.{{}}.mlp.router.{kind}": f"{_MLP}router.{kind}" for kind in ("weight", "bias")}
            | either(
                all_experts(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", alternating_gate_up_of_experts, transposed=True),
                all_experts(_MLP + "experts.gate_up_proj_blocks", _MLP + "experts.down_proj_blocks", alternating_gate_up_of_experts),
            )
            | biases_of_experts(_MLP + "experts.gate_up_proj_bias", _MLP + "experts.down_proj_bias"),
            ignored=IGNORED,
        ),
        aliases={"num_experts": "num_local_experts"},
    ),
)


def _qwen2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    gguf.no_window(settings)
    shared = settings.integer("expert_shared_feed_forward_length", settings.integer("feed_forward_length"))
    return gguf.common(settings, found) | gguf.experts(settings) | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": shared}


def _qwen3_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Weights are always normalized, and not in Qwen 2: as llama.cpp has it, which writes no key for it."""
    gguf.no_window(settings)
    return gguf.common(settings, found) | gguf.experts(settings) | {"model_type": "qwen3_moe", "norm_topk_prob": True}


def _olmoe_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | gguf.experts(settings) | {"model_type": "olmoe"}


def _gpt_oss_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found) | gguf.experts(settings, count="num_local_experts", gating=3)
    return values | {
        "model_type": "gpt_oss",
        "intermediate_size": values["moe_intermediate_size"],
        "sliding_window": gguf.window(settings) or None,
        **gguf.layer_types(settings, 2),
    }


def _ernie_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    settings.ignore("expert_shared_feed_forward_length")
    return (
        gguf.common(settings, found)
        | gguf.experts(settings, count="moe_num_experts")
        | {
            "model_type": "ernie4_5_moe",
            "use_bias": gguf.has_bias(found, "attn_q"),
            "moe_k": settings.integer("expert_used_count"),
            "moe_num_shared_experts": settings.integer("expert_shared_count", 0),
            "moe_layer_start_index": settings.integer("leading_dense_block_count", 0),
            "moe_layer_interval": settings.integer("interleave_moe_layer_step", 1),
        }
    )


def _hunyuan_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """All layers have as many experts there, of the size of the channel beside them."""
    settings.ignore("expert_shared_count", "expert_shared_feed_forward_length")
    values = gguf.common(settings, found) | gguf.experts(settings)
    return values | {
        "model_type": "hunyuan_v1_moe",
        "intermediate_size": values["moe_intermediate_size"],
        "moe_topk": values["num_experts_per_tok"],
    }


GGUF = (
    GGUFEntry(architectures=("qwen2moe",), settings=_qwen2_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("qwen3moe",), settings=_qwen3_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("olmoe",), settings=_olmoe_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("gpt-oss",), settings=_gpt_oss_of_gguf, names=gguf.NAMES_WITH_POST_ATTENTION_NORM),
    GGUFEntry(architectures=("ernie4_5-moe",), settings=_ernie_of_gguf, names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("hunyuan-moe",), settings=_hunyuan_of_gguf, names=gguf.NAMES),
)
