"""GPT-NeoX, GPT-J and their kin: LayerNorm with bias, no gate, attention and channel mostly side by side; some learn positions."""

from dataclasses import replace
from typing import Any

import torch

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable, Rows, RowsOf, Source, fused_qkv, fused_qkv_by_group
from ..parts.attention import QKNormSpec
from ..parts.mlp import MLPSpec
from ..parts.norm import NormSpec
from ..parts.rope import RopeSpec
from ..settings import Settings
from ..spec import EmbedSpec, HeadSpec, LayerNorms, LayerSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import DAMAGED, activation, after, attention, before, dense, head_size, layer_norm, mlp, num_layers
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
_GPT = "transformer.h.{}."
_GPTJ_MODULES = {
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "layers.{}.attention_norm": _GPT + "ln_1",
    "layers.{}.attention.o": _GPT + "attn.out_proj",
    "layers.{}.mlp.up": _GPT + "mlp.fc_in",
    "layers.{}.mlp.down": _GPT + "mlp.fc_out",
}
_GPTJ_EMBED = {"embed.weight": "transformer.wte.weight"}
_GPTJ_IGNORED = (_GPT + "attn.bias", _GPT + "attn.masked_bias", _GPT + "attn.causal_mask")
_GPTJ_NAMES = NameTable(
    sources=_GPTJ_EMBED | renamed(_GPTJ_MODULES | {f"layers.{{}}.attention.{part}": f"{_GPT}attn.{part}_proj" for part in "qkv"}),
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
    sources=_GPTJ_EMBED | renamed(_GPTJ_MODULES) | parted(QKV, _GPT + "attn.qkv_proj", _codegen_rows),
    ignored=_GPTJ_IGNORED,
    interleaved=True,
)


def _gptj(settings: Settings) -> ModelSpec:
    norm = layer_norm(settings)
    settings.ignore("n_ctx", *_SUMMARIES)
    table = RopeSpec(theta=10000.0, width=settings.integer("rotary_dim", head_size(settings)))
    return dense(
        settings,
        mixers=attention(settings, ropes=(table,) * num_layers(settings)),
        channel=_four_times(settings),
        norms=LayerNorms(before_mixer=norm),
        final=norm,
        parallel=True,
        head=HeadSpec(bias=True),
    )


def _four_times(settings: Settings) -> MLPSpec:
    """A plain channel with biases, by default of four times the size of the residual stream."""
    return mlp(settings, size=settings.integer("intermediate_size", 4 * settings.integer("hidden_size")), gated=False, bias=True)


_SUMMARIES = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")
_GPT_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "activation_function": "hidden_act",
}


# GPT-2 and GPT-BigCode: a learned vector for every position
_GPT2_MODULES = {
    "norm": "transformer.ln_f",
    "layers.{}.attention_norm": _GPT + "ln_1",
    "layers.{}.attention.o": _GPT + "attn.c_proj",
    "layers.{}.mlp_norm": _GPT + "ln_2",
    "layers.{}.mlp.up": _GPT + "mlp.c_fc",
    "layers.{}.mlp.down": _GPT + "mlp.c_proj",
}
_GPT2_EMBED: dict[str, Entry] = {
    "embed.weight": "transformer.wte.weight",
    "embed_positions.weight": "transformer.wpe.weight",
    "head.weight": "lm_head.weight",
}
_TRANSPOSED: dict[str, Entry] = {
    f"{ours}.weight": Source(tensor=f"{theirs}.weight", transposed=True)
    for ours, theirs in _GPT2_MODULES.items()
    if not ours.endswith("norm")
}
_GPT2_NAMES = NameTable(
    sources=_GPT2_EMBED
    | renamed(_GPT2_MODULES)
    | _TRANSPOSED
    | parted(QKV, _GPT + "attn.c_attn", fused_qkv, ["bias"])
    | parted(QKV, _GPT + "attn.c_attn", fused_qkv, ["weight"], transposed=True),
    ignored=(_GPT + "attn.bias", _GPT + "attn.masked_bias"),
)


def _bigcode_names(spec: ModelSpec) -> NameTable:
    """Rows lie one after another where all heads share one key, else head by head."""
    rows = fused_qkv if spec.layers[0].mixer.num_kv_heads == 1 else fused_qkv_by_group
    return NameTable(sources=_GPT2_EMBED | renamed(_GPT2_MODULES) | parted(QKV, _GPT + "attn.c_attn", rows), ignored=_GPT2_NAMES.ignored)


def _gpt2(settings: Settings) -> ModelSpec:
    settings.ignore("reorder_and_upcast_attn", "attn_pdrop", "n_ctx", *_SUMMARIES)
    dim = head_size(settings)
    mixers = _unrotated(settings, scale=dim**-0.5 if settings.flag("scale_attn_weights", True) else 1.0)
    if settings.flag("scale_attn_by_inverse_layer_idx", False):
        mixers = tuple(replace(mixer, scale=mixer.scale / (index + 1)) for index, mixer in enumerate(mixers))
    return _with_positions(settings, mixers)


def _gpt_bigcode(settings: Settings) -> ModelSpec:
    settings.ignore(
        "attn_pdrop", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "pre_allocate_kv_cache", "validate_runner_input"
    )
    settings.ignore("inference_runner", "max_sequence_length", "max_batch_size", "n_ctx", "num_key_value_heads", *_SUMMARIES)
    scale = head_size(settings) ** -0.5 if settings.flag("scale_attn_weights", True) else 1.0
    return _with_positions(settings, _unrotated(settings, scale=scale, kv_heads=1 if settings.flag("multi_query", True) else None))


def _unrotated(settings: Settings, *, kv_heads: int | None = None, **fields: Any) -> Any:
    mixers = attention(settings, ropes=(None,) * num_layers(settings), **{"qkv_bias": True, "output_bias": True} | fields)
    return mixers if kv_heads is None else tuple(replace(mixer, num_kv_heads=kv_heads) for mixer in mixers)


def _with_positions(settings: Settings, mixers: Any, **fields: Any) -> ModelSpec:
    norm = layer_norm(settings)
    offset = fields.pop("offset", 0)
    embed = EmbedSpec(
        positions=settings.integer("max_position_embeddings") + offset, offset=offset, multiplier=fields.pop("embed_multiplier", 1.0)
    )
    return dense(settings, mixers=mixers, channel=_four_times(settings), norms=before(norm), final=norm, embed=embed, **fields)


# GPT-1: norms of sums, none at the end
_GPT1_NAMES = NameTable(
    sources={**_GPT2_NAMES.sources}
    | {"embed.weight": "transformer.tokens_embed.weight", "embed_positions.weight": "transformer.positions_embed.weight"}
    | renamed({"layers.{}.attention_post_norm": _GPT + "ln_1", "layers.{}.mlp_post_norm": _GPT + "ln_2"}),
    ignored=_GPT2_NAMES.ignored,
)


def _openai_gpt(settings: Settings) -> ModelSpec:
    """By "gelu" its configuration means the approximation by tanh."""
    settings.ignore("attn_pdrop", "predict_special_tokens", *_SUMMARIES)
    act = "gelu_tanh" if settings.text("hidden_act") == "gelu" else activation(settings)
    channel = MLPSpec(size=4 * settings.integer("hidden_size"), activation=act, gated=False, bias=True)
    return dense(
        settings,
        mixers=_unrotated(settings),
        channel=channel,
        norms=after(layer_norm(settings)),
        final=None,
        normalizes_sums=True,
        embed=EmbedSpec(positions=settings.integer("max_position_embeddings")),
    )


# GPT-Neo: scores are not scaled, every other layer has a window
_NEO_NAMES = NameTable(
    sources=_GPT2_EMBED
    | renamed(
        _GPT2_MODULES
        | {"layers.{}.attention.o": _GPT + "attn.attention.out_proj"}
        | {f"layers.{{}}.attention.{part}": f"{_GPT}attn.attention.{part}_proj" for part in "qkv"}
    ),
    ignored=(_GPT + "attn.attention.bias", _GPT + "attn.attention.masked_bias"),
)


def _kinds(settings: Settings) -> list[str]:
    """Of layers, from pairs of a pattern and how often it comes."""
    try:
        return [str(kind) for pattern, times in settings.items("attention_types") for kind in pattern * times]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{settings.source}: attention_types are not pairs of a pattern and a number", hint=DAMAGED) from error


def _gpt_neo(settings: Settings) -> ModelSpec:
    settings.ignore("attention_layers", "resid_dropout", "embed_dropout", "tokenizer_class", *_SUMMARIES)
    kinds = _kinds(settings)
    window = settings.integer("window_size")
    windows = [window if kind == "local" else 0 for kind in kinds]
    return _with_positions(settings, _unrotated(settings, windows=windows, scale=1.0, qkv_bias=False))


# OPT and BioGPT: positions count from 2
_OPT = "model.decoder.layers.{}."
_OPT_LAYER = {
    "layers.{}.attention_norm": _OPT + "self_attn_layer_norm",
    "layers.{}.attention.o": _OPT + "self_attn.out_proj",
    "layers.{}.mlp_norm": _OPT + "final_layer_norm",
    "layers.{}.mlp.up": _OPT + "fc1",
    "layers.{}.mlp.down": _OPT + "fc2",
    **{f"layers.{{}}.attention.{part}": f"{_OPT}self_attn.{part}_proj" for part in "qkv"},
}
_OPT_NAMES = NameTable(
    sources={
        "embed.weight": "model.decoder.embed_tokens.weight",
        "embed_positions.weight": "model.decoder.embed_positions.weight",
        "head.weight": "lm_head.weight",
    }
    | renamed({"norm": "model.decoder.final_layer_norm"})
    | renamed(_OPT_LAYER)
)
_BIOGPT = "biogpt.layers.{}."
_BIOGPT_NAMES = NameTable(
    sources={
        "embed.weight": "biogpt.embed_tokens.weight",
        "embed_positions.weight": "biogpt.embed_positions.weight",
        "head.weight": "output_projection.weight",
    }
    | renamed({"norm": "biogpt.layer_norm"})
    | renamed({ours: theirs.replace(_OPT, _BIOGPT) for ours, theirs in _OPT_LAYER.items()})
)


def _opt(settings: Settings) -> ModelSpec:
    size = settings.integer("hidden_size")
    refused = {
        "do_layer_norm_before": not settings.flag("do_layer_norm_before"),
        "word_embed_proj_dim": settings.integer("word_embed_proj_dim", size) != size,
        "_remove_final_layer_norm": settings.flag("_remove_final_layer_norm", False),
        "enable_bias": not settings.flag("enable_bias"),
        "layer_norm_elementwise_affine": not settings.flag("layer_norm_elementwise_affine"),
    }
    for name in (name for name, is_other in refused.items() if is_other):
        raise UnsupportedModelError(
            f"{settings.source}: {name} = {settings.raw(name)} is not supported", hint="of OPT, all sizes but 350M do without"
        )
    settings.ignore("activation_dropout", "dropout", "layerdrop", "init_std", "prefix")
    return _with_positions(settings, _unrotated(settings), offset=2)


def _biogpt(settings: Settings) -> ModelSpec:
    """Its norms have the eps of PyTorch, whatever the configuration says."""
    settings.ignore("layerdrop", "activation_dropout", "attention_probs_dropout_prob", "layer_norm_eps")
    multiplier = settings.integer("hidden_size") ** 0.5 if settings.flag("scale_embedding") else 1.0
    norm = NormSpec(kind="layer", eps=1e-5, bias=True)
    embed = EmbedSpec(positions=settings.integer("max_position_embeddings") + 2, offset=2, multiplier=multiplier)
    return dense(settings, mixers=_unrotated(settings), channel=_four_times(settings), norms=before(norm), final=norm, embed=embed)


# Falcon without ALiBi
_FALCON_MODULES = {
    "norm": "transformer.ln_f",
    "layers.{}.attention.o": _GPT + "self_attention.dense",
    "layers.{}.mlp.up": _GPT + "mlp.dense_h_to_4h",
    "layers.{}.mlp.down": _GPT + "mlp.dense_4h_to_h",
}


def _falcon_names(spec: ModelSpec) -> NameTable:
    layer = spec.layers[0]
    own = layer.parallel and layer.norms.before_channel is not None
    norms = {"layers.{}.attention_norm": _GPT + ("ln_attn" if own else "input_layernorm")}
    norms |= {"layers.{}.mlp_norm": _GPT + ("ln_mlp" if own else "post_attention_layernorm")}
    rows = fused_qkv if layer.mixer.num_kv_heads == 1 else fused_qkv_by_group
    return NameTable(
        sources={"embed.weight": "transformer.word_embeddings.weight", "head.weight": "lm_head.weight"}
        | renamed(_FALCON_MODULES | norms)
        | parted(QKV, _GPT + "self_attention.query_key_value", rows),
        ignored=(_GPT + "self_attention.rotary_emb.inv_freq",),
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
_GPT2_DEFAULTS = COMMON | {"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "max_position_embeddings": 1024, "tie_word_embeddings": True}
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
        defaults=_NEOX_DEFAULTS | {"intermediate_multiple_size": 4, "tie_word_embeddings": True},
        aliases=_NEOX_ALIASES,
        read=_gpt_neox_japanese,
        names=_japanese_names,
    ),
    HFEntry(
        model_types=("gptj",),
        defaults=_GPT2_DEFAULTS | {"max_position_embeddings": 2048, "rotary_dim": 64, "tie_word_embeddings": False},
        aliases=_GPT_ALIASES,
        read=_gptj,
        names=_GPTJ_NAMES,
    ),
    HFEntry(
        model_types=("codegen",),
        defaults=_GPT2_DEFAULTS | {"max_position_embeddings": 2048, "rotary_dim": 64, "tie_word_embeddings": False},
        aliases=_GPT_ALIASES,
        read=_gptj,
        names=_CODEGEN_NAMES,
    ),
    HFEntry(model_types=("gpt2", "gpt-sw3"), defaults=_GPT2_DEFAULTS, aliases=_GPT_ALIASES, read=_gpt2, names=_GPT2_NAMES),
    HFEntry(
        model_types=("openai-gpt",),
        defaults=_GPT2_DEFAULTS | {"hidden_act": "gelu", "max_position_embeddings": 512},
        aliases=_GPT_ALIASES | {"afn": "hidden_act"},
        read=_openai_gpt,
        names=_GPT1_NAMES,
    ),
    HFEntry(
        model_types=("gpt_bigcode",),
        defaults=_GPT2_DEFAULTS | {"hidden_act": "gelu_pytorch_tanh", "multi_query": True},
        aliases=_GPT_ALIASES,
        read=_gpt_bigcode,
        names=_bigcode_names,
    ),
    HFEntry(
        model_types=("gpt_neo",),
        defaults=_GPT2_DEFAULTS | {"max_position_embeddings": 2048, "window_size": 256},
        aliases=_GPT_ALIASES | {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
        read=_gpt_neo,
        names=_NEO_NAMES,
    ),
    HFEntry(
        model_types=("opt",),
        defaults=_GPT2_DEFAULTS
        | {
            "hidden_act": "relu",
            "max_position_embeddings": 2048,
            "do_layer_norm_before": True,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
        },
        aliases=_GPT_ALIASES | {"ffn_dim": "intermediate_size"},
        read=_opt,
        names=_OPT_NAMES,
    ),
    HFEntry(
        model_types=("biogpt",),
        defaults=_GPT2_DEFAULTS | {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "scale_embedding": True},
        read=_biogpt,
        names=_BIOGPT_NAMES,
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
        aliases=_GPT_ALIASES | {"activation": "hidden_act", "ffn_hidden_size": "intermediate_size"},
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


def _gpt2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "gpt2"}


def _bigcode_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found)
    return values | {"model_type": "gpt_bigcode", "multi_query": values["num_key_value_heads"] == 1}


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
    return NameTable(sources={**_GGUF_NAMES.sources, **norms}, ignored=gguf.VECTORS)


_GGUF_NAMES = NameTable(
    sources=gguf.SOURCES | {"embed_positions.weight": "position_embd.weight"} | parted(QKV, "blk.{}.attn_qkv", fused_qkv),
    ignored=gguf.VECTORS,
)
GGUF = (
    GGUFEntry(architectures=("gptneox",), settings=_neox_of_gguf, names=_GGUF_NAMES),
    GGUFEntry(architectures=("gpt2",), settings=_gpt2_of_gguf, names=_GGUF_NAMES),
    GGUFEntry(architectures=("starcoder",), settings=_bigcode_of_gguf, names=_GGUF_NAMES),
    GGUFEntry(architectures=("falcon",), settings=_falcon_of_gguf, names=_falcon_gguf_names),
)
