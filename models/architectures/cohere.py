"""Cohere: one LayerNorm for attention and channel, which run side by side; neighbours rotate together; logits are scaled."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import UnsupportedModelError
from ..names import NameTable
from ..parts.attention import QKNormSpec
from ..parts.moe import MoESpec
from ..parts.norm import NormSpec
from ..parts.rope import RopeSpec
from ..settings import Settings
from ..spec import Channel, HeadSpec, LayerNorms, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .experts import by_layer, router, shared, shared_mlp
from .hf import attention, dense, layer_norm, mlp, rms, rope, rope_settings, window_size, windows_by_type
from .llama import COMMON, IGNORED, LAYER, SOURCES
from .mixtral import EXPERTS, ROUTER

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


def _cohere2_moe(settings: Settings) -> ModelSpec:
    """Routers choose by logits. The first layers may be dense, and rotate then whether they have a window or not."""
    pattern, first = settings.integer("sliding_window_pattern", 4), settings.integer("first_k_dense_replace", 0)
    windows = windows_by_type(settings, window_size(settings), lambda index: (index + 1) % pattern != 0)
    weighting = settings.text("expert_selection_fn", "softmax")
    if weighting not in ("softmax", "sigmoid"):
        raise UnsupportedModelError(
            f"{settings.source}: weights of experts by {weighting!r} are not supported", hint="softmax and sigmoid are"
        )
    normalized = settings.flag("norm_topk_prob", True) and weighting == "sigmoid"
    made = router(settings, score="identity", weighting=weighting, normalized=normalized)
    combined, count = settings.text("shared_expert_combination_strategy", "average"), settings.integer("num_shared_experts", 0)
    if combined not in ("average", "sum"):
        raise UnsupportedModelError(
            f"{settings.source}: experts beside the chosen combined by {combined!r} are not supported", hint="average and sum are"
        )
    sparse = MoESpec(
        router=made,
        experts=mlp(settings),
        shared=shared_mlp(settings, count, settings.integer("intermediate_size")),
        multiplier=0.5 if count and combined == "average" else 1.0,
    )
    size = settings.integer("prefix_dense_intermediate_size", settings.integer("intermediate_size"))
    channels = by_layer(settings, mlp(settings, size=size), sparse, lambda index: index >= first)
    rotates = settings.integer("prefix_dense_sliding_window_pattern", 1) == 1
    table = rope(settings)
    ropes = [table if window or (rotates and channel is not sparse) else None for window, channel in zip(windows, channels, strict=True)]
    norm = rms(settings) if "rms_norm_eps" in settings else layer_norm(settings, bias=False)
    return _model(settings, norm=norm, channel=channels, windows=windows, ropes=ropes)


def _compass(settings: Settings) -> ModelSpec:
    """Each type of layer has a table or none; the sections of images rotate alike for text."""
    windows = windows_by_type(settings, window_size(settings), lambda index: False)
    tables: dict[str, RopeSpec | None] = {
        kind: rope(settings, kind) if rope_settings(settings).get(kind, {}) is not None else None
        for kind in {"sliding_attention" if window else "full_attention" for window in windows}
    }
    return _model(settings, windows=windows, ropes=[tables["sliding_attention" if window else "full_attention"] for window in windows])


def _model(
    settings: Settings, *, norm: NormSpec | None = None, channel: Channel | Sequence[Channel] | None = None, **layers: Any
) -> ModelSpec:
    norm, bias = norm or layer_norm(settings, bias=False), settings.flag("attention_bias", False)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, **layers),
        channel=channel or mlp(settings),
        norms=LayerNorms(before_mixer=norm),
        final=norm,
        parallel=True,
        head=HeadSpec(multiplier=settings.number("logit_scale", 1.0)),
    )


HF = (
    HFEntry(model_types=("cohere",), defaults=_DEFAULTS | {"rope_theta": 500000.0}, read=_cohere, names=NAMES),
    HFEntry(model_types=("cohere2",), defaults=_DEFAULTS | {"sliding_window": 4096}, read=_cohere2, names=NAMES),
    HFEntry(
        model_types=("cohere2_moe",),
        defaults=_DEFAULTS | {"rms_norm_eps": None, "head_dim": 128, "sliding_window": 4096, "num_experts": 8, "num_experts_per_tok": 2},
        read=_cohere2_moe,
        names=NameTable(sources=SOURCES | ROUTER | EXPERTS | shared(LAYER + "mlp.shared_experts"), ignored=IGNORED, interleaved=True),
    ),
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


def _cohere2_moe_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Weights of experts are sigmoids; what is beside experts and they are averaged."""
    values = gguf.common(settings, found) | gguf.experts(settings, gating=2)
    settings.ignore("expert_shared_feed_forward_length")
    return (
        values
        | {
            "model_type": "cohere2_moe",
            "logit_scale": settings.number("logit_scale"),
            "sliding_window": settings.integer("attention.sliding_window"),
            "intermediate_size": values["moe_intermediate_size"],
            "prefix_dense_intermediate_size": values["intermediate_size"],
            "first_k_dense_replace": settings.integer("leading_dense_block_count"),
            "num_shared_experts": settings.integer("expert_shared_count", 0),
            "norm_topk_prob": settings.flag("expert_weights_norm", False),
            "expert_selection_fn": "sigmoid",
        }
        | gguf.layer_types(settings, 4)
    )


_GGUF_NAMES = NameTable(sources=gguf.SOURCES, ignored=gguf.VECTORS, interleaved=True)
GGUF = (
    GGUFEntry(architectures=("command-r",), settings=_of_gguf("cohere"), names=_GGUF_NAMES),
    GGUFEntry(architectures=("cohere2",), settings=_of_gguf("cohere2"), names=_GGUF_NAMES),
    GGUFEntry(architectures=("cohere2moe",), settings=_cohere2_moe_of_gguf, names=replace(_GGUF_NAMES, further_layers=gguf.LAYER)),
)
