"""Phi-1, 1.5, 2 (one LayerNorm, side by side) and Phi-3, 3.5, 4 (Llama in fused matrices, LongRoPE)."""

from typing import Any

from ..names import NameTable, fused_gate_up, fused_qkv
from ..parts.attention import QKNormSpec
from ..settings import Settings
from ..spec import HeadSpec, LayerNorms, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import attention, before, dense, layer_norm, mlp, num_layers, rms, window_size
from .llama import COMMON, GATE_UP, IGNORED, LAYER, QKV, SOURCES, either, parted, renamed

_QKV = parted(QKV, LAYER + "self_attn.qkv_proj", fused_qkv)
_GATE_UP = parted(GATE_UP, LAYER + "mlp.gate_up_proj", fused_gate_up)
PHI3_NAMES = NameTable(sources=SOURCES | _QKV | _GATE_UP, ignored=IGNORED)
_PHI = {
    "norm": "model.final_layernorm",
    "head": "lm_head",
    "layers.{}.attention_norm": LAYER + "input_layernorm",
    "layers.{}.attention.o": LAYER + "self_attn.dense",
    "layers.{}.attention.q_norm": LAYER + "self_attn.q_layernorm",
    "layers.{}.attention.k_norm": LAYER + "self_attn.k_layernorm",
    "layers.{}.mlp.up": LAYER + "mlp.fc1",
    "layers.{}.mlp.down": LAYER + "mlp.fc2",
}
PHI_NAMES = NameTable(sources=SOURCES | renamed(_PHI), ignored=IGNORED)


def _phi3(settings: Settings) -> ModelSpec:
    settings.ignore("original_max_position_embeddings")
    return dense(
        settings,
        mixers=attention(settings, windows=(window_size(settings),) * num_layers(settings)),
        channel=mlp(settings),
        norms=before(rms(settings)),
        final=rms(settings),
    )


def _phi4_multimodal(settings: Settings) -> ModelSpec:
    settings.ignore("vision_config", "audio_config")
    return _phi3(settings)


def _phi(settings: Settings) -> ModelSpec:
    norm = layer_norm(settings)
    qk_norm = QKNormSpec(norm=norm) if settings.flag("qk_layernorm", False) else None
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=True, output_bias=True, qk_norm=qk_norm),
        channel=mlp(settings, gated=False, bias=True),
        norms=LayerNorms(before_mixer=norm),
        final=norm,
        parallel=True,
        head=HeadSpec(bias=True),
    )


HF = (
    HFEntry(
        model_types=("phi3",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 1.0,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
        read=_phi3,
        names=PHI3_NAMES,
    ),
    HFEntry(
        model_types=("phi4_multimodal",),
        defaults=COMMON
        | {
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 1.0,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "num_key_value_heads": 8,
        },
        read=_phi4_multimodal,
        names=PHI3_NAMES,
        prefixes={name: name for name in ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")},
    ),
    HFEntry(
        model_types=("phi",),
        defaults=COMMON | {"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5, "max_position_embeddings": 2048},
        read=_phi,
        names=PHI_NAMES,
    ),
)


def _phi3_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {
        "model_type": "phi3",
        "sliding_window": gguf.window(settings) or None,
        "original_max_position_embeddings": settings.integer("rope.scaling.original_context_length", settings.integer("context_length")),
    }


def _phi2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "phi"}


_FUSED = parted(QKV, "blk.{}.attn_qkv", fused_qkv)
_FUSED_UP = parted(GATE_UP, "blk.{}.ffn_up", fused_gate_up)
_GGUF_PHI3 = NameTable(sources=either(gguf.SOURCES, _FUSED) | _FUSED_UP, ignored=gguf.VECTORS)
_GGUF_PHI2 = NameTable(sources=either(gguf.SOURCES, _FUSED), ignored=gguf.VECTORS)
GGUF = (
    GGUFEntry(architectures=("phi3",), settings=_phi3_of_gguf, names=_GGUF_PHI3),
    GGUFEntry(architectures=("phi2",), settings=_phi2_of_gguf, names=_GGUF_PHI2),
)
