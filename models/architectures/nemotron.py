"""Families without a gate: Nemotron, Arcee, Jais 2, Apertus, StarCoder 2; and StableLM, which has their norms and a gate."""

from collections.abc import Mapping
from typing import Any

import torch

from ..names import Entry, NameTable, Source
from ..parts.attention import QKNormSpec
from ..settings import Settings
from ..spec import LayerNorms, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import attention, before, dense, layer_norm, mlp, num_layers, rms, window_size
from .llama import COMMON, IGNORED, LAYER, NAMES, SOURCES, renamed

_PLUS_ONE: dict[str, Entry] = {
    "norm.weight": Source(tensor="model.norm.weight", plus=1.0),
    "layers.{}.attention_norm.weight": Source(tensor=LAYER + "input_layernorm.weight", plus=1.0),
    "layers.{}.mlp_norm.weight": Source(tensor=LAYER + "post_attention_layernorm.weight", plus=1.0),
}
_XIELU_NAMES = ("alpha_p", "alpha_n", "beta", "eps")
_XIELU = {f"layers.{{}}.mlp.activation.{name}": f"{LAYER}mlp.act_fn.{name}" for name in _XIELU_NAMES}
_APERTUS: dict[str, Entry] = {
    "layers.{}.attention_norm.weight": LAYER + "attention_layernorm.weight",
    "layers.{}.mlp_norm.weight": LAYER + "feedforward_layernorm.weight",
}
_STARCODER2 = renamed({"layers.{}.mlp.up": LAYER + "mlp.c_fc", "layers.{}.mlp.down": LAYER + "mlp.c_proj"})


_NORM_OF_EACH_HEAD: dict[str, Entry] = {
    "layers.{}.attention.q_norm.weight": Source(
        tensor=LAYER + "self_attn.q_layernorm.norms.{i}.weight", stacked=lambda layer: layer.mixer.num_heads
    ),
    "layers.{}.attention.k_norm.weight": Source(
        tensor=LAYER + "self_attn.k_layernorm.norms.{i}.weight", stacked=lambda layer: layer.mixer.num_kv_heads
    ),
}


def _nemotron(settings: Settings) -> ModelSpec:
    norm, bias, mlp_bias = layer_norm(settings, "norm_eps"), settings.flag("attention_bias", False), settings.flag("mlp_bias", False)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias),
        channel=mlp(settings, gated=False, bias=mlp_bias),
        norms=before(norm),
        final=norm,
    )


def _arcee(settings: Settings) -> ModelSpec:
    norm, bias, mlp_bias = rms(settings), settings.flag("attention_bias", False), settings.flag("mlp_bias", False)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias),
        channel=mlp(settings, gated=False, bias=mlp_bias),
        norms=before(norm),
        final=norm,
    )


def _jais2(settings: Settings) -> ModelSpec:
    norm, bias = layer_norm(settings), settings.flag("attention_bias")
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias),
        channel=mlp(settings, gated=False, bias=settings.flag("mlp_bias")),
        norms=before(norm),
        final=norm,
    )


def _apertus(settings: Settings) -> ModelSpec:
    norm, bias = rms(settings), settings.flag("attention_bias", False)
    settings.ignore("post_norm", "qk_norm")  # always the same in what was published
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias, qk_norm=QKNormSpec(norm=norm)),
        channel=mlp(settings, gated=False),
        norms=before(norm),
        final=norm,
    )


def _starcoder2(settings: Settings) -> ModelSpec:
    norm, bias = layer_norm(settings, "norm_epsilon"), settings.flag("use_bias")
    settings.ignore("mlp_type", "norm_type", "embedding_dropout", "residual_dropout")
    return dense(
        settings,
        mixers=attention(settings, windows=(window_size(settings),) * num_layers(settings), qkv_bias=bias, output_bias=bias),
        channel=mlp(settings, gated=False, bias=bias),
        norms=before(norm),
        final=norm,
    )


def _stablelm(settings: Settings) -> ModelSpec:
    qk_norm = QKNormSpec(norm=layer_norm(settings, bias=False), over="each_head") if settings.flag("qk_layernorm", False) else None
    norm, parallel = layer_norm(settings), settings.flag("use_parallel_residual", False)
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=settings.flag("use_qkv_bias", False), qk_norm=qk_norm),
        channel=mlp(settings),
        norms=LayerNorms(before_mixer=norm) if parallel else before(norm),
        final=norm,
        parallel=parallel,
    )


HF = (
    HFEntry(
        model_types=("nemotron",),
        defaults=COMMON | {"norm_eps": 1e-5, "hidden_act": "relu2", "partial_rotary_factor": 0.5, "max_position_embeddings": 4096},
        read=_nemotron,
        names=NameTable(sources=SOURCES | _PLUS_ONE, ignored=IGNORED),
    ),
    HFEntry(
        model_types=("arcee",),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "hidden_act": "relu2", "max_position_embeddings": 4096},
        read=_arcee,
        names=NAMES,
    ),
    HFEntry(
        model_types=("jais2",),
        defaults=COMMON
        | {"layer_norm_eps": 1e-5, "hidden_act": "relu2", "max_position_embeddings": 8192, "attention_bias": True, "mlp_bias": True},
        read=_jais2,
        names=NAMES,
    ),
    HFEntry(
        model_types=("apertus", "apertus1p5_text"),
        defaults=COMMON | {"rms_norm_eps": 1e-5, "hidden_act": "xielu", "max_position_embeddings": 65536, "rope_theta": 12000000.0},
        read=_apertus,
        names=NameTable(sources=SOURCES | _XIELU | _APERTUS, ignored=IGNORED),
    ),
    HFEntry(
        model_types=("starcoder2",),
        defaults=COMMON
        | {
            "norm_epsilon": 1e-5,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 4096,
            "num_key_value_heads": 2,
            "use_bias": True,
            "tie_word_embeddings": True,
        },
        read=_starcoder2,
        names=NameTable(sources=SOURCES | _STARCODER2, ignored=IGNORED),
    ),
    HFEntry(
        model_types=("stablelm",),
        defaults=COMMON | {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "max_position_embeddings": 4096},
        read=_stablelm,
        names=NameTable(sources=SOURCES | _NORM_OF_EACH_HEAD, ignored=IGNORED),
    ),
)


def _of_gguf(model_type: str, **more: Any) -> Any:
    def read(settings: Settings, found: GGUFSource) -> dict[str, Any]:
        return gguf.common(settings, found) | {"model_type": model_type} | more

    return read


def _nemotron_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found)
    return values | {"model_type": "nemotron", "norm_eps": values["layer_norm_eps"]}


def _starcoder2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found)
    return values | {"model_type": "starcoder2", "norm_epsilon": values["layer_norm_eps"], "use_bias": gguf.has_bias(found, "attn_q")}


def _stablelm_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {
        "model_type": "stablelm",
        "use_qkv_bias": gguf.has_bias(found, "attn_q"),
        "use_parallel_residual": settings.flag("use_parallel_residual", False),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in found.tensors,
    }


def _jais2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    biases = {"attention_bias": gguf.has_bias(found, "attn_q"), "mlp_bias": gguf.has_bias(found, "ffn_up")}
    return gguf.common(settings, found) | {"model_type": "jais2"} | biases


def _xielu_of_gguf(metadata: Mapping[str, Any], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """What activations have learned stands among the metadata, a list of all layers for each number."""
    shapes: dict[str, tuple[int, ...]] = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
    numbers = Settings(metadata, "general metadata")
    return {
        f"xielu.{name}.{layer}": torch.tensor(value, dtype=torch.float32).view(shape)
        for name, shape in shapes.items()
        for layer, value in enumerate(numbers.numbers(f"xielu.{name}"))
    }


GGUF = (
    GGUFEntry(architectures=("nemotron",), settings=_nemotron_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("arcee",), settings=_of_gguf("arcee"), names=gguf.INTERLEAVED_NAMES),
    GGUFEntry(architectures=("jais2",), settings=_jais2_of_gguf, names=gguf.NAMES),
    GGUFEntry(
        architectures=("apertus",),
        settings=_of_gguf("apertus"),
        names=NameTable(
            sources=gguf.SOURCES | {f"layers.{{}}.mlp.activation.{name}": f"xielu.{name}.{{}}" for name in _XIELU_NAMES},
            ignored=gguf.VECTORS,
        ),
        values=_xielu_of_gguf,
    ),
    GGUFEntry(architectures=("starcoder2",), settings=_starcoder2_of_gguf, names=gguf.NAMES),
    GGUFEntry(architectures=("stablelm",), settings=_stablelm_of_gguf, names=gguf.NAMES),
)
