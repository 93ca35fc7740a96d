"""Models with experts whose routers are sigmoids, and that are no kin of DeepSeek's: Trinity (AFMoE), Hunyuan 3, Kolibri, Flint."""

from collections.abc import Callable
from typing import Any

from ...errors import UnsupportedModelError
from ..names import NameTable
from ..parts.attention import GateSpec, QKNormSpec
from ..parts.moe import MoESpec
from ..settings import Settings, brief
from ..spec import EmbedSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import by_layer, router, shared, shared_mlp
from .glm_moe import DEEPSEEK_SOURCES
from .hf import around, attention, before, dense, mlp, num_layers, rms, rope, window_size, windows_by_type
from .llama import COMMON, IGNORED, LAYER

_MLP = LAYER + "mlp."


_ONLY_OF_AFMOE = {
    "score_func": "sigmoid",
    "route_norm": True,
    **dict.fromkeys(("n_group", "topk_group", "num_expert_groups", "num_limited_groups"), 1),
}


def _afmoe(settings: Settings) -> ModelSpec:
    """Norms around mixer and channel; what attention gives is gated; layers that see everything have no positions."""
    every, first, norm = settings.integer("global_attn_every_n_layers", 4), settings.integer("num_dense_layers", 1), rms(settings)
    windows = windows_by_type(settings, window_size(settings), lambda index: (index + 1) % every != 0)
    table, bias, size = rope(settings), settings.flag("attention_bias", False), settings.integer("moe_intermediate_size")
    made = router(settings, score="sigmoid", choice_bias=True, normalized=True, eps=1e-20, scale=settings.number("route_scale", 1.0))
    sparse = MoESpec(
        router=made, experts=mlp(settings, size=size), shared=shared_mlp(settings, settings.integer("num_shared_experts", 0), size)
    )
    settings.ignore("load_balance_coeff")
    for name, only in _ONLY_OF_AFMOE.items():
        if name in settings and settings.raw(name) != only:
            raise UnsupportedModelError(f"{settings.source}: {name} = {brief(settings.raw(name))} is not supported", hint=f"{only} is")
    scaled = settings.flag("mup_enabled", False)
    return dense(
        settings,
        mixers=attention(
            settings,
            windows=windows,
            ropes=[table if window else None for window in windows],
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=QKNormSpec(norm=norm),
            gate=GateSpec(),
        ),
        channel=by_layer(settings, mlp(settings), sparse, lambda index: index >= first),
        norms=around(norm),
        final=norm,
        embed=EmbedSpec(multiplier=settings.integer("hidden_size") ** 0.5 if scaled else 1.0),
    )


def _hy_v3(settings: Settings) -> ModelSpec:
    bias, norm, size = settings.flag("attention_bias", False), rms(settings), settings.integer("moe_intermediate_size")
    settings.ignore("enable_moe_fp32_combine", "num_nextn_predict_layers")
    scale = settings.number("router_scaling_factor")
    made = router(settings, score="sigmoid", choice_bias=True, normalized=True, eps=1e-20, scale=scale)
    channel_bias = settings.flag("mlp_bias", False)
    sparse = MoESpec(
        router=made,
        experts=mlp(settings, size=size),
        shared=shared_mlp(settings, settings.integer("num_shared_experts", 0), size, bias=channel_bias),
    )
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=norm)),
        channel=by_layer(settings, mlp(settings, bias=channel_bias), sparse, lambda index: index > 0),
        norms=before(norm),
        final=norm,
    )


def _windows_that_rotate(settings: Settings, default: Callable[[int], bool]) -> dict[str, Any]:
    """Layers that see everything have no positions. Fields of `attention`."""
    windows, table = windows_by_type(settings, window_size(settings), default), rope(settings)
    return {"windows": windows, "ropes": [table if window else None for window in windows]}


def _kolibri1(settings: Settings) -> ModelSpec:
    """Experts are chosen by logits and weighted by their sigmoids; norms around mixer and channel."""
    norm, layers = rms(settings), _windows_that_rotate(settings, lambda index: (index + 1) % 5 != 0)
    normalized = settings.flag("norm_topk_prob", False)
    made = router(settings, score="identity", choice_bias=True, weighting="sigmoid", normalized=normalized)
    shared_size = settings.integer("shared_expert_intermediate_size")
    channel = MoESpec(
        router=made,
        experts=mlp(settings, size=settings.integer("moe_intermediate_size")),
        shared=mlp(settings, size=shared_size),
    )
    mixers = attention(settings, qk_norm=QKNormSpec(norm=norm), **layers)
    return dense(settings, mixers=mixers, channel=channel, norms=around(norm), final=norm)


def _flint(settings: Settings) -> ModelSpec:
    """Sigmoids without a bias, a sink for every head; the first two layers, every fourth one and the last see everything."""
    last, norm = num_layers(settings) - 1, rms(settings)
    layers = _windows_that_rotate(settings, lambda index: index >= 2 and index % 4 != 1 and index != last)
    bias, only = settings.flag("attention_bias", False), settings.raw("mlp_only_layers")
    step = settings.integer("decoder_sparse_step", 1)
    sparse = MoESpec(
        router=router(settings, score="sigmoid", normalized=settings.flag("norm_topk_prob", True)),
        experts=mlp(settings, size=settings.integer("moe_intermediate_size")),
        shared=mlp(settings, size=settings.integer("shared_expert_intermediate_size")),
    )
    dense_layers = {0, 1} if only is None else set(only)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=norm), sinks=True, **layers),
        channel=by_layer(settings, mlp(settings), sparse, lambda index: index not in dense_layers and (index + 1) % step == 0),
        norms=before(norm),
        final=norm,
    )


_AFMOE_NAMES = NameTable(
    sources=DEEPSEEK_SOURCES
    | {
        "layers.{}.attention.gate.weight": LAYER + "self_attn.gate_proj.weight",
        "layers.{}.attention_post_norm.weight": LAYER + "post_attention_layernorm.weight",
        "layers.{}.mlp_norm.weight": LAYER + "pre_mlp_layernorm.weight",
        "layers.{}.mlp_post_norm.weight": LAYER + "post_mlp_layernorm.weight",
        "layers.{}.mlp.router.weight": _MLP + "router.gate.weight",
        "layers.{}.mlp.router.choice_bias": _MLP + "expert_bias",
    },
    ignored=IGNORED,
)
_HY_NAMES = NameTable(
    sources=DEEPSEEK_SOURCES
    | shared(_MLP + "shared_mlp")
    | {"layers.{}.mlp.router.weight": _MLP + "router.gate.weight", "layers.{}.mlp.router.choice_bias": _MLP + "expert_bias"},
    ignored=IGNORED,
    further_layers=LAYER,
)
_FLINT_NAMES = NameTable(
    sources=DEEPSEEK_SOURCES
    | shared(_MLP + "shared_expert")
    | {"layers.{}.attention.sinks": (LAYER + "self_attn.softmax_offset", LAYER + "self_attn.sinks")},
    ignored=IGNORED,
)
_KOLIBRI_NAMES = NameTable(
    sources=DEEPSEEK_SOURCES
    | {
        "layers.{}.attention_post_norm.weight": LAYER + "post_attn_norm.weight",
        "layers.{}.mlp_post_norm.weight": LAYER + "post_ffn_norm.weight",
        "layers.{}.mlp.router.choice_bias": LAYER + "moe.router.expert_bias",
    },
    ignored=IGNORED,
)
HF = (
    HFEntry(
        model_types=("afmoe",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 16384,
            "head_dim": 128,
            "sliding_window": 1024,
            "moe_intermediate_size": 1408,
            "num_experts": 64,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
        },
        read=_afmoe,
        names=_AFMOE_NAMES,
    ),
    HFEntry(
        model_types=("hy_v3",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 11158840.0,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "moe_intermediate_size": 1536,
            "num_experts": 192,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "router_scaling_factor": 2.826,
        },
        read=_hy_v3,
        names=_HY_NAMES,
        aliases={"num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("kolibri1",),
        defaults=COMMON
        | {
            "max_position_embeddings": 262144,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "sliding_window": 513,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 384,
            "num_experts_per_tok": 6,
            "intermediate_size": 512,
        },
        read=_kolibri1,
        names=_KOLIBRI_NAMES,
        aliases={"num_local_experts": "num_experts"},
    ),
    HFEntry(
        model_types=("flint",),
        defaults=COMMON
        | {
            "max_position_embeddings": 262144,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "sliding_window": 513,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 1024,
            "num_experts": 256,
            "num_experts_per_tok": 6,
        },
        read=_flint,
        names=_FLINT_NAMES,
    ),
)


def _normalized(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """What both families have. Raises UnsupportedModelError for weights of experts that are not normalized."""
    if not settings.flag("expert_weights_norm", True):
        raise UnsupportedModelError(f"{settings.source}: expert_weights_norm = false is not supported of this architecture", hint="true is")
    return gguf.common(settings, found) | gguf.experts(settings, gating=2, scaled=True)


def _afmoe_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Embeddings are always scaled, as llama.cpp has it, which writes no key for it. Layers with a window rotate, however long it is."""
    values = _normalized(settings, found)
    return (
        values
        | {
            "model_type": "afmoe",
            "num_dense_layers": settings.integer("leading_dense_block_count", 0),
            "num_shared_experts": settings.integer("expert_shared_count", 0),
            "route_scale": values["routed_scaling_factor"],
            "sliding_window": settings.integer("attention.sliding_window"),
            "mup_enabled": True,
        }
        | gguf.layer_types(settings, 4)
    )


def _hy_v3_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Which layers have experts is what their tensors say."""
    values = _normalized(settings, found)
    size, shared_size = values["moe_intermediate_size"], settings.integer("expert_shared_feed_forward_length", 0)
    sparse = [f"{gguf.LAYER.format(index)}ffn_gate_inp.weight" in found.tensors for index in range(values["num_hidden_layers"])]
    return values | {
        "model_type": "hy_v3",
        "num_shared_experts": shared_size // size if shared_size else 1,
        "router_scaling_factor": values["routed_scaling_factor"],
        "mlp_layer_types": ["sparse" if each else "dense" for each in sparse],
    }


_OF_AFMOE = gguf.SOURCES | {"layers.{}.attention.gate.weight": gguf.LAYER + "attn_gate.weight"}
_OF_HY = gguf.SOURCES | {"layers.{}.mlp.router.choice_bias": (gguf.LAYER + "exp_probs_b", gguf.LAYER + "exp_probs_b.bias")}
GGUF = (
    GGUFEntry(architectures=("afmoe",), settings=_afmoe_of_gguf, names=NameTable(sources=_OF_AFMOE, ignored=gguf.VECTORS)),
    GGUFEntry(
        architectures=("hy-v3",),
        settings=_hy_v3_of_gguf,
        names=NameTable(sources=_OF_HY, ignored=gguf.VECTORS, further_layers=gguf.LAYER),
    ),
)
