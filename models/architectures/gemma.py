"""Gemma 1, 2 and 3 (text), and VaultGemma: norms that multiply by 1 + weight, embeddings times the root of their size, GELU."""

import math
from collections.abc import Callable
from typing import Any

from ...errors import CheckpointError
from ..names import Entry, NameTable, Source
from ..parts.activations import Activation
from ..parts.attention import QKNormSpec
from ..parts.norm import NormSpec
from ..settings import Settings
from ..spec import EmbedSpec, HeadSpec, LayerNorms, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import DAMAGED, activation, around, attention, before, dense, mlp, rms, rope, rounded, window_size, windows_by_type
from .llama import COMMON, IGNORED, LAYER, SOURCES

_PLUS_ONE: dict[str, Entry] = {
    "norm.weight": Source(tensor="model.norm.weight", plus=1.0),
    "layers.{}.attention_norm.weight": Source(tensor=LAYER + "input_layernorm.weight", plus=1.0),
    "layers.{}.attention.q_norm.weight": Source(tensor=LAYER + "self_attn.q_norm.weight", plus=1.0),
    "layers.{}.attention.k_norm.weight": Source(tensor=LAYER + "self_attn.k_norm.weight", plus=1.0),
}
NAMES = NameTable(
    sources=SOURCES | _PLUS_ONE | {"layers.{}.mlp_norm.weight": Source(tensor=LAYER + "post_attention_layernorm.weight", plus=1.0)},
    ignored=IGNORED,
)
_AROUND: dict[str, Entry] = {
    "layers.{}.attention_post_norm.weight": Source(tensor=LAYER + "post_attention_layernorm.weight", plus=1.0),
    "layers.{}.mlp_norm.weight": Source(tensor=LAYER + "pre_feedforward_layernorm.weight", plus=1.0),
    "layers.{}.mlp_post_norm.weight": Source(tensor=LAYER + "post_feedforward_layernorm.weight", plus=1.0),
}
AROUND_NAMES = NameTable(sources=SOURCES | _PLUS_ONE | _AROUND, ignored=IGNORED)

_DEFAULTS = COMMON | {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}


def _gemma(settings: Settings) -> ModelSpec:
    """Its files say "gelu" and mean the approximation by tanh; `hidden_activation`, which some have beside it, is not read."""
    settings.ignore("hidden_activation")
    given = activation(settings)
    return _model(settings, before(rms(settings)), own_activation="gelu_tanh" if given == "gelu" else given)


def _gemma2(norms: Callable[[NormSpec], LayerNorms]) -> Callable[[Settings], ModelSpec]:
    def read(settings: Settings) -> ModelSpec:
        windows = windows_by_type(settings, window_size(settings), lambda index: index % 2 == 0)
        softcap = settings.number("attn_logit_softcapping", 0.0)
        return _model(settings, norms(rms(settings)), windows=windows, scale=_scale(settings), softcap=softcap)

    return read


def _gemma3(settings: Settings) -> ModelSpec:
    """A table of its own for layers with a window; scaling is of the other layers' table alone."""
    pattern = settings.integer("sliding_window_pattern", settings.integer("_sliding_window_pattern", 6))
    causal = not settings.raw("use_bidirectional_attention")
    window = window_size(settings) if causal else window_size(settings) // 2 + 1  # of an encoder, both sides together
    windows = windows_by_type(settings, window, lambda index: (index + 1) % pattern != 0)
    full = rope(settings, "full_attention")
    local = rope(settings, "sliding_attention", theta_name="rope_local_base_freq", scaled=False)
    settings.ignore("rope_local_base_freq", "attn_logit_softcapping")
    return _model(
        settings,
        around(rms(settings)),
        windows=windows,
        ropes=[local if window else full for window in windows],
        scale=_scale(settings),
        qk_norm=QKNormSpec(norm=rms(settings)),
        causal=causal,
    )


def _scale(settings: Settings) -> float:
    scalar = settings.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise CheckpointError(f"{settings.source}: query_pre_attn_scalar is {scalar}; it must be positive", hint=DAMAGED)
    return float(scalar**-0.5)


def _model(settings: Settings, norms: LayerNorms, *, own_activation: Activation | None = None, **layers: Any) -> ModelSpec:
    bias = settings.flag("attention_bias", False)
    settings.ignore("hidden_act")  # an older name, left in newer files
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, **layers),
        channel=mlp(settings, activation=own_activation or activation(settings, "hidden_activation")),
        max_context=settings.integer("max_position_embeddings"),  # which counts the stretch of Gemma 3's scaling
        norms=norms,
        final=rms(settings),
        embed=EmbedSpec(multiplier=rounded(math.sqrt(settings.integer("hidden_size")), settings)),
        head=HeadSpec(softcap=settings.number("final_logit_softcapping", 0.0)),
    )


HF = (
    HFEntry(model_types=("gemma",), defaults=_DEFAULTS, read=_gemma, names=NAMES),
    HFEntry(
        model_types=("gemma2",),
        defaults=_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        read=_gemma2(around),
        names=AROUND_NAMES,
    ),
    HFEntry(
        model_types=("vaultgemma",),
        defaults=_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        read=_gemma2(before),
        names=NameTable(sources=AROUND_NAMES.sources, ignored=IGNORED),
    ),
    HFEntry(
        model_types=("gemma3_text",),
        defaults=_DEFAULTS | {"max_position_embeddings": 131072, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0},
        read=_gemma3,
        names=AROUND_NAMES,
    ),
)


def _of_gguf(settings: Settings, found: GGUFSource, model_type: str) -> dict[str, Any]:
    values = gguf.common(settings, found)
    return values | {"model_type": model_type, "hidden_activation": "gelu_pytorch_tanh"}


def _gemma_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return _of_gguf(settings, found, "gemma")


def _gemma2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """The scale is no setting: llama.cpp knows that of the 27B by its size."""
    values = _of_gguf(settings, found, "gemma2")
    scalar = values["hidden_size"] / values["num_attention_heads"] if values["num_hidden_layers"] == 46 else values["head_dim"]
    return values | {
        "query_pre_attn_scalar": scalar,
        "sliding_window": settings.integer("attention.sliding_window"),
        "attn_logit_softcapping": settings.number("attn_logit_softcapping", 0.0),
        "final_logit_softcapping": settings.number("final_logit_softcapping", 0.0),
    }


def _gemma3_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = _of_gguf(settings, found, "gemma3_text")
    scalar = values["hidden_size"] / values["num_attention_heads"] if values["num_hidden_layers"] == 62 else values["head_dim"]
    return values | {
        "query_pre_attn_scalar": scalar,
        "sliding_window": settings.integer("attention.sliding_window"),
        "rope_local_base_freq": settings.number("rope.freq_base_swa", 10000.0),
        **gguf.layer_types(settings, 6),
        "final_logit_softcapping": settings.number("final_logit_softcapping", 0.0),
    }


GGUF = (
    GGUFEntry(architectures=("gemma",), settings=_gemma_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("gemma2",), settings=_gemma2_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("gemma3",), settings=_gemma3_of_gguf, names=gguf.NAMES),
)
