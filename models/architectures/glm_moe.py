"""Models with experts whose routers are sigmoids with a bias for the choice, as DeepSeek-V3's: GLM-4.5, dots.llm1, MiniMax-M2, EXAONE."""

from dataclasses import replace
from typing import Any

from ...errors import UnsupportedModelError
from ..names import Entry, NameTable, fused_qkv
from ..parts.attention import QKNormSpec
from ..parts.moe import MoESpec, RouterSpec
from ..settings import Settings
from ..spec import ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import after_the_first, by_layer, check_sigmoid, each_expert, router, shared, shared_mlp, sigmoid_router
from .hf import attention, before, dense, head_size, mlp, num_layers, rms, rope, window_size, windows_by_type
from .llama import COMMON, IGNORED, LAYER, QKV, SOURCES, either, parted, renamed
from .mixtral import EXPERTS, ROUTER

_MLP, _BLOCK = LAYER + "mlp.", LAYER + "block_sparse_moe."
DEEPSEEK_SOURCES: dict[str, Entry] = (
    SOURCES
    | ROUTER
    | EXPERTS
    | shared(_MLP + "shared_experts")
    | {"layers.{}.mlp.router.choice_bias": (_MLP + "gate.e_score_correction_bias", _MLP + "e_score_correction_bias")}
)
NAMES = NameTable(sources=DEEPSEEK_SOURCES, ignored=IGNORED, further_layers=LAYER)


def _channel(settings: Settings, made: RouterSpec, shared_count: int) -> MoESpec:
    size = settings.integer("moe_intermediate_size")
    return MoESpec(router=made, experts=mlp(settings, size=size), shared=shared_mlp(settings, shared_count, size))


def _glm4_moe(settings: Settings) -> ModelSpec:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    settings.ignore("num_nextn_predict_layers", "num_mtp_layers")
    sparse = _channel(settings, sigmoid_router(settings), settings.integer("n_shared_experts", 0))
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, qk_norm=QKNormSpec(norm=norm) if settings.flag("use_qk_norm", False) else None),
        channel=by_layer(settings, mlp(settings), sparse, after_the_first(settings)),
        norms=before(norm),
        final=norm,
    )


def _solar_open(settings: Settings) -> ModelSpec:
    """Every layer has experts."""
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    settings.ignore("intermediate_size", "first_k_dense_replace", "use_qk_norm")
    sparse = _channel(settings, sigmoid_router(settings), settings.integer("n_shared_experts", 0))
    return dense(settings, mixers=attention(settings, qkv_bias=bias), channel=sparse, norms=before(norm), final=norm)


def _dots1(settings: Settings) -> ModelSpec:
    bias, norm = settings.flag("attention_bias", False), rms(settings)
    first = settings.integer("max_window_layers", num_layers(settings))
    window = window_size(settings)
    windows = windows_by_type(settings, window, lambda index: bool(window) and index >= first)
    sparse = _channel(settings, sigmoid_router(settings), settings.integer("n_shared_experts", 0))
    return dense(
        settings,
        mixers=attention(settings, windows=windows, qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=norm)),
        channel=by_layer(settings, mlp(settings), sparse, after_the_first(settings)),
        norms=before(norm),
        final=norm,
    )


def _exaone_moe(settings: Settings) -> ModelSpec:
    """As EXAONE 4: with windows, the layers that see everything have no positions."""
    window, pattern, norm = window_size(settings), settings.raw("sliding_window_pattern"), rms(settings)
    period = len(pattern) if isinstance(pattern, str) else settings.integer("sliding_window_pattern", 4)
    windows = windows_by_type(settings, window, lambda index: (index + 1) % period != 0)
    table = rope(settings)
    settings.ignore("num_nextn_predict_layers")
    sparse = _channel(settings, sigmoid_router(settings, "num_experts"), settings.integer("num_shared_experts", 0))
    return dense(
        settings,
        mixers=attention(
            settings, windows=windows, ropes=[table if each or not window else None for each in windows], qk_norm=QKNormSpec(norm=norm)
        ),
        channel=by_layer(settings, mlp(settings), sparse, after_the_first(settings)),
        norms=before(norm),
        final=norm,
    )


def _minimax_m2(settings: Settings) -> ModelSpec:
    """`rotary_dim` says how much of a head rotates where `partial_rotary_factor` does not; every layer sees everything."""
    norm, table = rms(settings), rope(settings)
    if "rotary_dim" in settings and table.width == head_size(settings):
        table = replace(table, width=settings.integer("rotary_dim"))
    if any(kind != 1 for kind in settings.raw("attn_type_list") or ()):
        raise UnsupportedModelError(f"{settings.source}: attn_type_list has layers without attention", hint="MiniMax-M2 has none")
    check_sigmoid(settings)
    settings.ignore("rotary_dim", "use_qk_norm", "qk_norm_type", "use_routing_bias")
    settings.ignore("mtp_transformer_layers", "num_mtp_modules", "use_mtp")
    made = router(settings, "num_local_experts", score="sigmoid", choice_bias=True, normalized=True)
    return dense(
        settings,
        mixers=attention(settings, ropes=(table,) * num_layers(settings), qk_norm=QKNormSpec(norm=norm, over="width")),
        channel=MoESpec(router=made, experts=mlp(settings)),
        norms=before(norm),
        final=norm,
    )


_COMMON: dict[str, Any] = COMMON | {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "num_experts_per_tok": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
}
_SARVAM_NAMES = NameTable(
    sources=either(DEEPSEEK_SOURCES, parted(QKV, LAYER + "attention.query_key_value", fused_qkv))
    | {
        "embed.weight": "model.word_embeddings.weight",
        **renamed(
            {
                "layers.{}.attention.o": LAYER + "attention.dense",
                "layers.{}.attention.q_norm": LAYER + "attention.query_layernorm",
                "layers.{}.attention.k_norm": LAYER + "attention.key_layernorm",
            }
        ),
        "layers.{}.mlp.router.choice_bias": _MLP + "gate.expert_bias",
    },
    ignored=IGNORED,
    further_layers=LAYER,
)
HF = (
    HFEntry(
        model_types=("glm4_moe",),
        defaults=_COMMON | {"moe_intermediate_size": 1408, "first_k_dense_replace": 1, "partial_rotary_factor": 0.5},
        read=_glm4_moe,
        names=NAMES,
        aliases={"num_local_experts": "n_routed_experts"},
    ),
    HFEntry(
        model_types=("sarvam_moe",),
        defaults=_COMMON
        | {
            "rms_norm_eps": 1e-6,
            "rope_theta": 8000000.0,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "moe_intermediate_size": 1024,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.5,
            "use_qk_norm": True,
            "partial_rotary_factor": 1.0,
        },
        read=_glm4_moe,
        names=_SARVAM_NAMES,
        aliases=dict.fromkeys(("num_local_experts", "num_experts"), "n_routed_experts")
        | {"num_shared_experts": "n_shared_experts", "use_qkv_bias": "attention_bias"},
    ),
    HFEntry(
        model_types=("solar_open",),
        defaults=_COMMON | {"moe_intermediate_size": 1280, "rope_theta": 1000000.0, "head_dim": 128, "partial_rotary_factor": 1.0},
        read=_solar_open,
        names=NAMES,
        aliases={"num_local_experts": "n_routed_experts"},
    ),
    HFEntry(
        model_types=("dots1",),
        defaults=COMMON
        | {"max_position_embeddings": 2048, "num_key_value_heads": 32, "moe_intermediate_size": 1408, "sliding_window": 4096},
        read=_dots1,
        names=NAMES,
        aliases={"num_local_experts": "n_routed_experts"},
    ),
    HFEntry(
        model_types=("exaone_moe",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 1024,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        read=_exaone_moe,
        names=NAMES,
    ),
    HFEntry(
        model_types=("minimax_m2",),
        defaults=COMMON
        | {
            "rope_theta": 5000000.0,
            "max_position_embeddings": 196608,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_local_experts": 256,
            "num_experts_per_tok": 8,
            "partial_rotary_factor": 1.0,
        },
        read=_minimax_m2,
        names=NameTable(
            sources=SOURCES
            | {
                "layers.{}.mlp.router.weight": (_BLOCK + "gate.weight", _MLP + "gate.weight"),
                "layers.{}.mlp.router.choice_bias": (_BLOCK + "e_score_correction_bias", _MLP + "e_score_correction_bias"),
            }
            | either(each_expert(_BLOCK + "experts", ("w1", "w3", "w2")), EXPERTS),
            ignored=IGNORED,
        ),
        aliases={"num_experts": "num_local_experts"},
    ),
)


def _deepseek_like(model_type: str, found: GGUFSource, settings: Settings, **values: Any) -> dict[str, Any]:
    """A router by sigmoid, experts after a number of dense layers, an MLP beside them."""
    return (
        gguf.common(settings, found)
        | gguf.experts(settings, count="n_routed_experts", gating=2, scaled=True)
        | {
            "model_type": model_type,
            "n_shared_experts": settings.integer("expert_shared_count", 0),
            "first_k_dense_replace": settings.integer("leading_dense_block_count", 0),
            "norm_topk_prob": settings.flag("expert_weights_norm", False),
        }
        | values
    )


def _glm4_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    norm = f"{gguf.LAYER.format(0)}attn_q_norm.weight" in found.tensors
    return _deepseek_like("glm4_moe", found, settings, attention_bias=gguf.has_bias(found, "attn_q"), use_qk_norm=norm)


def _dots1_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    settings.ignore("expert_shared_feed_forward_length")
    return _deepseek_like("dots1", found, settings, sliding_window=None)


def _exaone_moe_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    settings.ignore("expert_shared_feed_forward_length")
    values = _deepseek_like("exaone_moe", found, settings, sliding_window=settings.integer("attention.sliding_window"))
    counts = {"num_experts": values["n_routed_experts"], "num_shared_experts": values["n_shared_experts"]}
    return values | counts | gguf.layer_types(settings, 4)


def _minimax_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found) | gguf.experts(settings, count="num_local_experts", gating=2)
    return values | {"model_type": "minimax_m2", "intermediate_size": values["moe_intermediate_size"]}


GGUF = (
    GGUFEntry(
        architectures=("glm4moe",),
        settings=_glm4_of_gguf,
        names=replace(gguf.NAMES_WITH_POST_ATTENTION_NORM, further_layers=gguf.LAYER),
    ),
    GGUFEntry(architectures=("dots1",), settings=_dots1_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("exaone-moe",), settings=_exaone_moe_of_gguf, names=replace(gguf.NAMES, further_layers=gguf.LAYER)),
    GGUFEntry(architectures=("minimax-m2",), settings=_minimax_of_gguf, names=gguf.NAMES),
)
