"""GPT-NeoX, GPT-J and their kin: LayerNorm with bias, no gate, rotary embeddings, attention and channel mostly side by side."""

from dataclasses import replace
from typing import Any

import torch

from ...errors import UnsupportedModelError
from ..names import NameTable, Rows, RowsOf, fused_qkv, fused_qkv_by_group
from ..parts.attention import QKNormSpec
from ..parts.rope import RopeSpec
from ..settings import Settings
from ..spec import HeadSpec, LayerNorms, LayerSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .gpt2 import ALIASES, DEFAULTS, GGUF_NAMES, GPT_LAYER, SUMMARIES, four_times
from .hf import attention, before, dense, head_size, layer_norm, mlp, num_layers
from .llama import COMMON, IGNORED, LAYER, QKV, SOURCES, parted, renamed

# GPT-NeoX (Pythia)
_NEOX = "gpt_neox.layers.{}."
_NEOX_MODULES = {
    "norm": "gpt_neox.final_layer_norm",
    "layers.{}.attention_norm": _NEOX + "input_layernorm",
    "layers.{}.mlp_norm": _NEOX + "post_attention_layernorm",
    "layers.{}.attention.o": _NEOX + "attention.dense",
    "layers.{}.mlp.up": _NEOX + "mlp.dense_h_to_4h",
    "layers.{}.mlp.down": _NEOX + "mlp.dense_4h_to_h",
}
_NEOX_NAMES = NameTable(
    sources=renamed(_NEOX_MODULES)
    | {"embed.weight": "gpt_neox.embed_in.weight", "head.weight": ("embed_out.weight", "lm_head.weight")}
    | parted(QKV, _NEOX + "attention.query_key_value", fused_qkv_by_group),
    ignored=(_NEOX + "attention.bias", _NEOX + "attention.masked_bias", _NEOX + "attention.rotary_emb.inv_freq"),
)


def _gpt_neox(settings: Settings) -> ModelSpec:
    norm, bias = layer_norm(settings), settings.flag("attention_bias")
    settings.ignore("is_decoder")
    return dense(
        settings,
        mixers=attention(settings, qkv_bias=bias, output_bias=bias),
        channel=mlp(settings, gated=False, bias=True),
        norms=before(norm),
        final=norm,
        parallel=settings.flag("use_parallel_residual"),
    )


# GPT-NeoX Japanese
_JAPANESE = "gpt_neox_japanese.layers.{}."


def _japanese_names(spec: ModelSpec) -> NameTable:
    """One bias stands for all: that of the last layer's output."""
    modules = {ours: theirs.replace("gpt_neox.", "gpt_neox_japanese.") for ours, theirs in _NEOX_MODULES.items()}
    return NameTable(
        sources=renamed(modules)
        | {
            "embed.weight": "gpt_neox_japanese.embed_in.weight",
            "head.weight": ("embed_out.weight", "lm_head.weight"),
        }
        | {"layers.{}.attention.o.bias": _JAPANESE + "attention.dense_bias"}
        | parted(QKV, _JAPANESE + "attention.query_key_value", fused_qkv_by_group),
        ignored=(_JAPANESE + "attention.rotary_emb.inv_freq",),
    )


def _gpt_neox_japanese(settings: Settings) -> ModelSpec:
    norm = layer_norm(settings)
    size = settings.integer("hidden_size") * settings.integer("intermediate_multiple_size")
    *mixers, last = attention(settings)
    settings.ignore("is_decoder")
    return dense(
        settings,
        mixers=(*mixers, replace(last, output_bias=True)),
        channel=mlp(settings, size=size, gated=False),
        norms=before(norm),
        final=norm,
    )


# GPT-J and CodeGen
_GPTJ_MODULES = {
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "layers.{}.attention_norm": GPT_LAYER + "ln_1",
    "layers.{}.attention.o": GPT_LAYER + "attn.out_proj",
    "layers.{}.mlp.up": GPT_LAYER + "mlp.fc_in",
    "layers.{}.mlp.down": GPT_LAYER + "mlp.fc_out",
}
_GPTJ_EMBED = {"embed.weight": "transformer.wte.weight"}
_GPTJ_IGNORED = (GPT_LAYER + "attn.bias", GPT_LAYER + "attn.masked_bias", GPT_LAYER + "attn.causal_mask")
_GPTJ_NAMES = NameTable(
    sources=_GPTJ_EMBED | renamed(_GPTJ_MODULES | {f"layers.{{}}.attention.{part}": f"{GPT_LAYER}attn.{part}_proj" for part in "qkv"}),
    ignored=_GPTJ_IGNORED,
    interleaved=True,
)


def _codegen_rows(part: str) -> RowsOf:
    return _CODEGEN_ROWS[part]


def _codegen_part(part: str) -> RowsOf:
    def rows(layer: LayerSpec) -> Rows:
        """Four groups of heads, each with the rows of its queries, values and keys."""
        spec = layer.mixer
        every = torch.arange(3 * spec.num_heads * spec.head_dim).view(4, 3, -1)
        return Rows(index=every[:, "qvk".index(part)].flatten(), of=every.numel())

    return rows


_CODEGEN_ROWS = {part: _codegen_part(part) for part in "qkv"}
_CODEGEN_NAMES = NameTable(
    sources=_GPTJ_EMBED | renamed(_GPTJ_MODULES) | parted(QKV, GPT_LAYER + "attn.qkv_proj", _codegen_rows),
    ignored=_GPTJ_IGNORED,
    interleaved=True,
)


def _gptj(settings: Settings) -> ModelSpec:
    norm = layer_norm(settings)
    settings.ignore("n_ctx", *SUMMARIES)
    table = RopeSpec(theta=10000.0, width=settings.integer("rotary_dim", head_size(settings)))
    return dense(
        settings,
        mixers=attention(settings, ropes=(table,) * num_layers(settings)),
        channel=four_times(settings),
        norms=LayerNorms(before_mixer=norm),
        final=norm,
        parallel=True,
        head=HeadSpec(bias=True),
    )


# Falcon without ALiBi
_FALCON_MODULES = {
    "norm": "transformer.ln_f",
    "layers.{}.attention.o": GPT_LAYER + "self_attention.dense",
    "layers.{}.mlp.up": GPT_LAYER + "mlp.dense_h_to_4h",
    "layers.{}.mlp.down": GPT_LAYER + "mlp.dense_4h_to_h",
}


def _falcon_names(spec: ModelSpec) -> NameTable:
    layer = spec.layers[0]
    own = layer.parallel and layer.norms.before_channel is not None
    norms = {"layers.{}.attention_norm": GPT_LAYER + ("ln_attn" if own else "input_layernorm")}
    norms |= {"layers.{}.mlp_norm": GPT_LAYER + ("ln_mlp" if own else "post_attention_layernorm")}
    rows = fused_qkv if layer.mixer.num_kv_heads == 1 else fused_qkv_by_group
    return NameTable(
        sources={"embed.weight": "transformer.word_embeddings.weight", "head.weight": "lm_head.weight"}
        | renamed(_FALCON_MODULES | norms)
        | parted(QKV, GPT_LAYER + "self_attention.query_key_value", rows),
        ignored=(GPT_LAYER + "self_attention.rotary_emb.inv_freq",),
    )


def _falcon(settings: Settings) -> ModelSpec:
    if settings.flag("alibi"):
        raise UnsupportedModelError(f"{settings.source}: alibi is not supported", hint="Falcon 7B, 40B and 11B do without")
    norm, bias, newer = layer_norm(settings), settings.flag("bias"), settings.flag("new_decoder_architecture")
    one = settings.flag("multi_query") and not newer
    heads = settings.integer("num_kv_heads", settings.integer("num_attention_heads")) if newer else settings.integer("num_attention_heads")
    settings.ignore("num_kv_heads", "multi_query")
    mixers = tuple(replace(mixer, num_kv_heads=1 if one else heads) for mixer in attention(settings, qkv_bias=bias, output_bias=bias))
    two_norms = newer and settings.integer("num_ln_in_parallel_attn", 2) == 2
    settings.ignore("num_ln_in_parallel_attn", "apply_residual_connection_post_layernorm")
    parallel = settings.flag("parallel_attn") or newer
    size = settings.integer("intermediate_size", 4 * settings.integer("hidden_size"))
    return dense(
        settings,
        mixers=mixers,
        channel=mlp(settings, size=size, gated=False, bias=bias),
        norms=before(norm) if two_norms or not parallel else LayerNorms(before_mixer=norm),
        final=norm,
        parallel=parallel,
    )


# Persimmon
_PERSIMMON_NAMES = NameTable(
    sources=SOURCES
    | renamed(
        {
            "norm": "model.final_layernorm",
            "layers.{}.attention.o": LAYER + "self_attn.dense",
            "layers.{}.attention.q_norm": LAYER + "self_attn.q_layernorm",
            "layers.{}.attention.k_norm": LAYER + "self_attn.k_layernorm",
            "layers.{}.mlp.up": LAYER + "mlp.dense_h_to_4h",
            "layers.{}.mlp.down": LAYER + "mlp.dense_4h_to_h",
        }
    )
    | parted(QKV, LAYER + "self_attn.query_key_value", fused_qkv_by_group),
    ignored=IGNORED,
)


def _persimmon(settings: Settings) -> ModelSpec:
    norm = layer_norm(settings)
    qk_norm = QKNormSpec(norm=norm) if settings.flag("qk_layernorm") else None
    mixers = attention(settings, qkv_bias=True, output_bias=True, qk_norm=qk_norm)
    return dense(settings, mixers=mixers, channel=mlp(settings, gated=False, bias=True), norms=before(norm), final=norm)


_NEOX_DEFAULTS = COMMON | {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "max_position_embeddings": 2048}
_NEOX_ALIASES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
HF = (
    HFEntry(
        model_types=("gpt_neox",),
        defaults=_NEOX_DEFAULTS | {"partial_rotary_factor": 0.25, "attention_bias": True, "use_parallel_residual": True},
        aliases=_NEOX_ALIASES,
        read=_gpt_neox,
        names=_NEOX_NAMES,
    ),
    HFEntry(
        model_types=("gpt_neox_japanese",),
        defaults=_NEOX_DEFAULTS | {"partial_rotary_factor": 1.0, "intermediate_multiple_size": 4, "tie_word_embeddings": True},
        aliases=_NEOX_ALIASES,
        read=_gpt_neox_japanese,
        names=_japanese_names,
    ),
    HFEntry(
        model_types=("gptj",),
        defaults=DEFAULTS | {"max_position_embeddings": 2048, "rotary_dim": 64, "tie_word_embeddings": False},
        aliases=ALIASES,
        read=_gptj,
        names=_GPTJ_NAMES,
    ),
    HFEntry(
        model_types=("codegen",),
        defaults=DEFAULTS | {"max_position_embeddings": 2048, "rotary_dim": 64, "tie_word_embeddings": False},
        aliases=ALIASES,
        read=_gptj,
        names=_CODEGEN_NAMES,
    ),
    HFEntry(
        model_types=("falcon",),
        defaults=COMMON
        | {
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "alibi": False,
            "bias": False,
            "multi_query": True,
            "new_decoder_architecture": False,
            "parallel_attn": True,
        },
        aliases=ALIASES | {"activation": "hidden_act", "ffn_hidden_size": "intermediate_size"},
        read=_falcon,
        names=_falcon_names,
    ),
    HFEntry(
        model_types=("persimmon",),
        defaults=COMMON
        | {
            "layer_norm_eps": 1e-5,
            "hidden_act": "relu2",
            "max_position_embeddings": 16384,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": True,
        },
        read=_persimmon,
        names=_PERSIMMON_NAMES,
    ),
)


def _neox_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "gpt_neox", "use_parallel_residual": settings.flag("use_parallel_residual", True)}


def _falcon_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    """Its newer architecture is the one with groups of heads, or with a norm for each of the two branches."""
    values, two_norms = gguf.common(settings, found), "blk.0.attn_norm_2.weight" in found.tensors
    settings.ignore("tensor_data_layout")
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    return values | {
        "model_type": "falcon",
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "new_decoder_architecture": two_norms or 1 < kv_heads < heads,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "bias": gguf.has_bias(found, "attn_output"),
    }


def _falcon_gguf_names(spec: ModelSpec) -> NameTable:
    two = {"layers.{}.attention_norm": "blk.{}.attn_norm_2", "layers.{}.mlp_norm": "blk.{}.attn_norm"}
    norms = renamed(two) if spec.layers[0].norms.before_channel is not None else {}
    return NameTable(sources={**GGUF_NAMES.sources, **norms}, ignored=gguf.VECTORS)


GGUF = (
    GGUFEntry(architectures=("gptneox",), settings=_neox_of_gguf, names=GGUF_NAMES),
    GGUFEntry(architectures=("falcon",), settings=_falcon_of_gguf, names=_falcon_gguf_names),
)
