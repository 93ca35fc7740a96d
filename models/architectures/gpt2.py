"""GPT-2 and its kin: LayerNorm with bias, no gate, and a learned vector for every position instead of a rotary embedding."""

from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable, Source, fused_qkv, fused_qkv_by_group
from ..parts.mlp import MLPSpec
from ..parts.norm import NormSpec
from ..settings import Settings
from ..spec import EmbedSpec, ModelSpec
from . import gguf
from .architecture import GGUFEntry, GGUFSource, HFEntry
from .hf import DAMAGED, activation, after, attention, before, dense, head_size, layer_norm, mlp, num_layers
from .llama import COMMON, QKV, parted, renamed

GPT_LAYER = "transformer.h.{}."
SUMMARIES = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")
ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "activation_function": "hidden_act",
}
DEFAULTS = COMMON | {"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "max_position_embeddings": 1024, "tie_word_embeddings": True}


def four_times(settings: Settings) -> MLPSpec:
    """A plain channel with biases, by default of four times the size of the residual stream."""
    return mlp(settings, size=settings.integer("intermediate_size", 4 * settings.integer("hidden_size")), gated=False, bias=True)


# GPT-2 and GPT-BigCode: a learned vector for every position
_GPT2_MODULES = {
    "norm": "transformer.ln_f",
    "layers.{}.attention_norm": GPT_LAYER + "ln_1",
    "layers.{}.attention.o": GPT_LAYER + "attn.c_proj",
    "layers.{}.mlp_norm": GPT_LAYER + "ln_2",
    "layers.{}.mlp.up": GPT_LAYER + "mlp.c_fc",
    "layers.{}.mlp.down": GPT_LAYER + "mlp.c_proj",
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
    | parted(QKV, GPT_LAYER + "attn.c_attn", fused_qkv, ["bias"])
    | parted(QKV, GPT_LAYER + "attn.c_attn", fused_qkv, ["weight"], transposed=True),
    ignored=(GPT_LAYER + "attn.bias", GPT_LAYER + "attn.masked_bias"),
)


def _bigcode_names(spec: ModelSpec) -> NameTable:
    """Rows lie one after another where all heads share one key, else head by head."""
    rows = fused_qkv if spec.layers[0].mixer.num_kv_heads == 1 else fused_qkv_by_group
    return NameTable(
        sources=_GPT2_EMBED | renamed(_GPT2_MODULES) | parted(QKV, GPT_LAYER + "attn.c_attn", rows), ignored=_GPT2_NAMES.ignored
    )


def _gpt2(settings: Settings) -> ModelSpec:
    settings.ignore("reorder_and_upcast_attn", "attn_pdrop", "n_ctx", *SUMMARIES)
    dim = head_size(settings)
    mixers = _unrotated(settings, scale=dim**-0.5 if settings.flag("scale_attn_weights", True) else 1.0)
    if settings.flag("scale_attn_by_inverse_layer_idx", False):
        mixers = tuple(replace(mixer, scale=mixer.scale / (index + 1)) for index, mixer in enumerate(mixers))
    return _with_positions(settings, mixers)


def _gpt_bigcode(settings: Settings) -> ModelSpec:
    settings.ignore(
        "attn_pdrop", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "pre_allocate_kv_cache", "validate_runner_input"
    )
    settings.ignore("inference_runner", "max_sequence_length", "max_batch_size", "n_ctx", "num_key_value_heads", *SUMMARIES)
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
    return dense(settings, mixers=mixers, channel=four_times(settings), norms=before(norm), final=norm, embed=embed, **fields)


# GPT-1: norms of sums, none at the end
_GPT1_NAMES = NameTable(
    sources={**_GPT2_NAMES.sources}
    | {"embed.weight": "transformer.tokens_embed.weight", "embed_positions.weight": "transformer.positions_embed.weight"}
    | renamed({"layers.{}.attention_post_norm": GPT_LAYER + "ln_1", "layers.{}.mlp_post_norm": GPT_LAYER + "ln_2"}),
    ignored=_GPT2_NAMES.ignored,
)


def _openai_gpt(settings: Settings) -> ModelSpec:
    """By "gelu" its configuration means the approximation by tanh."""
    settings.ignore("attn_pdrop", "predict_special_tokens", *SUMMARIES)
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
        | {"layers.{}.attention.o": GPT_LAYER + "attn.attention.out_proj"}
        | {f"layers.{{}}.attention.{part}": f"{GPT_LAYER}attn.attention.{part}_proj" for part in "qkv"}
    ),
    ignored=(GPT_LAYER + "attn.attention.bias", GPT_LAYER + "attn.attention.masked_bias"),
)


def _kinds(settings: Settings) -> list[str]:
    """Of layers, from pairs of a pattern and how often it comes."""
    try:
        return [str(kind) for pattern, times in settings.items("attention_types") for kind in pattern * times]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{settings.source}: attention_types are not pairs of a pattern and a number", hint=DAMAGED) from error


def _gpt_neo(settings: Settings) -> ModelSpec:
    settings.ignore("attention_layers", "resid_dropout", "embed_dropout", "tokenizer_class", *SUMMARIES)
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
    return dense(settings, mixers=_unrotated(settings), channel=four_times(settings), norms=before(norm), final=norm, embed=embed)


HF = (
    HFEntry(model_types=("gpt2", "gpt-sw3"), defaults=DEFAULTS, aliases=ALIASES, read=_gpt2, names=_GPT2_NAMES),
    HFEntry(
        model_types=("openai-gpt",),
        defaults=DEFAULTS | {"hidden_act": "gelu", "max_position_embeddings": 512},
        aliases=ALIASES | {"afn": "hidden_act"},
        read=_openai_gpt,
        names=_GPT1_NAMES,
    ),
    HFEntry(
        model_types=("gpt_bigcode",),
        defaults=DEFAULTS | {"hidden_act": "gelu_pytorch_tanh", "multi_query": True},
        aliases=ALIASES,
        read=_gpt_bigcode,
        names=_bigcode_names,
    ),
    HFEntry(
        model_types=("gpt_neo",),
        defaults=DEFAULTS | {"max_position_embeddings": 2048, "window_size": 256},
        aliases=ALIASES | {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
        read=_gpt_neo,
        names=_NEO_NAMES,
    ),
    HFEntry(
        model_types=("opt",),
        defaults=DEFAULTS
        | {
            "hidden_act": "relu",
            "max_position_embeddings": 2048,
            "do_layer_norm_before": True,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
        },
        aliases=ALIASES | {"ffn_dim": "intermediate_size"},
        read=_opt,
        names=_OPT_NAMES,
    ),
    HFEntry(
        model_types=("biogpt",),
        defaults=DEFAULTS | {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "scale_embedding": True},
        read=_biogpt,
        names=_BIOGPT_NAMES,
    ),
)


def _gpt2_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    return gguf.common(settings, found) | {"model_type": "gpt2"}


def _bigcode_of_gguf(settings: Settings, found: GGUFSource) -> dict[str, Any]:
    values = gguf.common(settings, found)
    return values | {"model_type": "gpt_bigcode", "multi_query": values["num_key_value_heads"] == 1}


GGUF_NAMES = NameTable(
    sources=gguf.SOURCES | {"embed_positions.weight": "position_embd.weight"} | parted(QKV, "blk.{}.attn_qkv", fused_qkv),
    ignored=gguf.VECTORS,
)
GGUF = (
    GGUFEntry(architectures=("gpt2",), settings=_gpt2_of_gguf, names=GGUF_NAMES),
    GGUFEntry(architectures=("starcoder",), settings=_bigcode_of_gguf, names=GGUF_NAMES),
)
