"""Cohere: one LayerNorm for attention and channel, which run side by side; neighbours rotate together; logits are scaled."""

from typing import Any

from ..names import NameTable
from ..parts.attention import QKNormSpec
from ..parts.rope import RopeSpec
from ..settings import Settings
from ..spec import HeadSpec, LayerNorms, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import attention, dense, layer_norm, mlp, rope, rope_settings, window_size, windows_by_type
from .llama import COMMON, IGNORED, SOURCES

NAMES = NameTable(sources=SOURCES, ignored=IGNORED, interleaved=True)
_DEFAULTS = COMMON | {"layer_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": True, "logit_scale": 0.0625}


def _cohere(settings: Settings) -> ModelSpec:
    norm = layer_norm(settings, bias=False)
    return _model(settings, qk_norm=QKNormSpec(norm=norm, over="each_head") if settings.flag("use_qk_norm", False) else None)


def _cohere2(settings: Settings) -> ModelSpec:
    """Layers with a window rotate; those that see everything have no positions."""
    pattern = settings.integer("sliding_window_pattern", settings.integer("_sliding_window_pattern", 4))
    windows = windows_by_type(settings, window_size(settings), lambda index: (index + 1) % pattern != 0)
    table = rope(settings)
    settings.ignore("order_of_interleaved_layers", "rotary_pct", "use_embedding_sharing", "use_gated_activation")
    settings.ignore("use_parallel_block", "use_parallel_embedding", "position_embedding_type", "layer_switch")
    return _model(settings, windows=windows, ropes=[table if window else None for window in windows])


def _compass(settings: Settings) -> ModelSpec:
    """Each type of layer has a table or none; the sections of images rotate alike for text."""
    windows = windows_by_type(settings, window_size(settings), lambda index: False)
    tables: dict[str, RopeSpec | None] = {
        kind: rope(settings, kind) if rope_settings(settings).get(kind, {}) is not None else None
        for kind in {"sliding_attention" if window else "full_attention" for window in windows}
    }
    return _model(settings, windows=windows, ropes=[tables["sliding_attention" if window else "full_attention"] for window in windows])


def _model(settings: Settings, **layers: Any) -> ModelSpec:
    norm, bias = layer_norm(settings, bias=False), settings.flag("attention_bias", False)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, **layers),
        channel=mlp(settings),
        norms=LayerNorms(before_mixer=norm),
        final=norm,
        parallel=True,
        head=HeadSpec(multiplier=settings.number("logit_scale", 1.0)),
    )


HF = (
    HFEntry(model_types=("cohere",), defaults=_DEFAULTS | {"rope_theta": 500000.0}, read=_cohere, names=NAMES),
    HFEntry(model_types=("cohere2",), defaults=_DEFAULTS | {"sliding_window": 4096}, read=_cohere2, names=NAMES),
    HFEntry(
        model_types=("cohere_compass_text",),
        defaults=_DEFAULTS | {"logit_scale": None},
        read=_compass,
        names=NameTable(sources=SOURCES, ignored=IGNORED),
    ),
)


def _of_gguf(model_type: str) -> Any:
    def read(settings: Settings, found: GGUFSource) -> dict[str, Any]:
        values = gguf.common(settings, found) | {"model_type": model_type, "logit_scale": settings.number("logit_scale", 1.0)}
        if model_type == "cohere2":
            return values | {"sliding_window": settings.integer("attention.sliding_window")}
        return values | {"use_qk_norm": "blk.0.attn_q_norm.weight" in found.tensors}

    return read


_GGUF_NAMES = NameTable(sources=gguf.SOURCES, ignored=gguf.VECTORS, interleaved=True)
GGUF = (
    GGUFEntry(architectures=("command-r",), settings=_of_gguf("cohere"), names=_GGUF_NAMES),
    GGUFEntry(architectures=("cohere2",), settings=_of_gguf("cohere2"), names=_GGUF_NAMES),
)
