"""GLM and GLM-4 (0414): half of each head rotates, neighbours together; gate and up lie in one matrix."""

from collections.abc import Callable
from typing import Any

from ..names import Entry, NameTable, fused_gate_up, fused_qkv
from ..settings import Settings
from ..spec import ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import around, attention, before, dense, mlp, rms
from .llama import COMMON, GATE_UP, IGNORED, LAYER, QKV, SOURCES, either, parted

_FUSED = parted(GATE_UP, LAYER + "mlp.gate_up_proj", fused_gate_up, ["weight"])
NAMES = NameTable(sources=SOURCES | _FUSED, ignored=IGNORED, interleaved=True)
_AROUND: dict[str, Entry] = {
    "layers.{}.attention_post_norm.weight": LAYER + "post_self_attn_layernorm.weight",
    "layers.{}.mlp_post_norm.weight": LAYER + "post_mlp_layernorm.weight",
}
AROUND_NAMES = NameTable(sources=SOURCES | _FUSED | _AROUND, ignored=IGNORED, interleaved=True)
_DEFAULTS = COMMON | {
    "rms_norm_eps": 1.5625e-07,
    "max_position_embeddings": 131072,
    "partial_rotary_factor": 0.5,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attention_bias": True,
}


def _glm(settings: Settings) -> ModelSpec:
    return _model(settings, before(rms(settings)))


def _glm4(settings: Settings) -> ModelSpec:
    return _model(settings, around(rms(settings)))


def _model(settings: Settings, norms: Any) -> ModelSpec:
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=settings.flag("attention_bias")),
        channel=mlp(settings),
        norms=norms,
        final=rms(settings),
    )


HF = (
    HFEntry(model_types=("glm",), defaults=_DEFAULTS, read=_glm, names=NAMES),
    HFEntry(model_types=("glm4",), defaults=_DEFAULTS, read=_glm4, names=AROUND_NAMES),
)


def _of_gguf(model_type: str) -> Callable[[Settings, GGUFSource], dict[str, Any]]:
    def read(settings: Settings, found: GGUFSource) -> dict[str, Any]:
        bias = gguf.has_bias(found, "attn_q") or gguf.has_bias(found, "attn_qkv")
        return gguf.common(settings, found) | {"model_type": model_type, "attention_bias": bias}

    return read


_GGUF_NAMES = NameTable(
    sources=either(gguf.SOURCES, parted(QKV, "blk.{}.attn_qkv", fused_qkv)) | parted(GATE_UP, "blk.{}.ffn_up", fused_gate_up, ["weight"]),
    ignored=gguf.VECTORS,
    interleaved=True,
)
GGUF = (
    GGUFEntry(architectures=("chatglm",), settings=_of_gguf("glm"), names=_GGUF_NAMES),
    GGUFEntry(architectures=("glm4",), settings=_of_gguf("glm4"), names=_GGUF_NAMES),
)
