"""GGUF metadata in the words of config.json, with the meaning that llama.cpp gives it: one reader per family makes the spec of both."""

import struct
import sys
from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..names import Entry, NameTable, Source, experts_of, gate_up_of_experts
from ..parts.rope import longrope_attention_factor, yarn_attention_factor
from ..settings import Settings
from .architecture import GGUFSource

LINEAR = ("weight", "bias")
LAYER = "blk.{}."


def _experts_of(part: str) -> Entry:
    """Those of a layer in one tensor, gate and up perhaps in one; or, in old files, each in its own."""
    own = Source(tensor=f"{LAYER}ffn_{part}_exps.weight", split=experts_of)
    each = Source(tensor=f"{LAYER}ffn_{part}.{{i}}.weight", joined=experts_of)
    if part == "down":
        return own, each
    return own, Source(tensor=LAYER + "ffn_gate_up_exps.weight", rows=gate_up_of_experts(part), split=experts_of), each


_PARTS = ("gate", "up", "down")
_EXPERTS: dict[str, Entry] = {
    **{f"layers.{{}}.mlp.router.{kind}": f"{LAYER}ffn_gate_inp.{kind}" for kind in LINEAR},
    "layers.{}.mlp.router.choice_bias": LAYER + "exp_probs_b.bias",
    **{f"layers.{{}}.mlp.experts.{part}.weight": _experts_of(part) for part in _PARTS},
    **{f"layers.{{}}.mlp.experts.{part}.bias": Source(tensor=f"{LAYER}ffn_{part}_exps.bias", split=experts_of) for part in _PARTS},
    **{f"layers.{{}}.mlp.shared.{part}.weight": f"{LAYER}ffn_{part}_shexp.weight" for part in _PARTS},
    # A vector there.
    "layers.{}.mlp.shared_gate.weight": Source(tensor=LAYER + "ffn_gate_inp_shexp.weight", stacked=lambda layer: 1),
}
SOURCES: dict[str, Entry] = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "norm.bias": "output_norm.bias",
    "head.weight": "output.weight",
    "head.bias": "output.bias",
    **{f"layers.{{}}.attention_norm.{kind}": f"{LAYER}attn_norm.{kind}" for kind in LINEAR},
    **{f"layers.{{}}.attention.{part}.{kind}": f"{LAYER}attn_{part}.{kind}" for part in "qkv" for kind in LINEAR},
    **{f"layers.{{}}.attention.o.{kind}": f"{LAYER}attn_output.{kind}" for kind in LINEAR},
    **{f"layers.{{}}.attention.{part}_norm.{kind}": f"{LAYER}attn_{part}_norm.{kind}" for part in "qk" for kind in LINEAR},
    "layers.{}.attention.sinks": LAYER + "attn_sinks.weight",
    "layers.{}.attention_post_norm.weight": LAYER + "post_attention_norm.weight",
    **{f"layers.{{}}.mlp_norm.{kind}": f"{LAYER}ffn_norm.{kind}" for kind in LINEAR},
    **{f"layers.{{}}.mlp.{part}.{kind}": f"{LAYER}ffn_{part}.{kind}" for part in ("gate", "up", "down") for kind in LINEAR},
    "layers.{}.mlp_post_norm.weight": LAYER + "post_ffw_norm.weight",
    **_EXPERTS,
}
# Read into the configuration instead (`GGUFSource.vectors`).
ROPE_DIVISORS = "rope_freqs.weight"
LONG_DIVISORS, SHORT_DIVISORS = "rope_factors_long.weight", "rope_factors_short.weight"
VECTORS = (ROPE_DIVISORS, LONG_DIVISORS, SHORT_DIVISORS)
NAMES = NameTable(sources=SOURCES, ignored=VECTORS)
INTERLEAVED_NAMES = NameTable(sources=SOURCES, ignored=VECTORS, interleaved=True)

# Where the norm of what the channel reads has the other's name.
NAMES_WITH_POST_ATTENTION_NORM = NameTable(
    sources=SOURCES | {"layers.{}.mlp_norm.weight": LAYER + "post_attention_norm.weight"}, ignored=VECTORS
)


def common(
    settings: Settings, found: GGUFSource, *, head_dim: int | None = None, kv_heads: int | None = None, intermediate_size: int | None = None
) -> dict[str, Any]:
    """The settings that nearly all families have, by their names in config.json. head_dim, kv_heads, intermediate_size: instead of what
    the file says of keys, of heads of keys and values, and of channels."""
    heads, hidden_size = settings.integer("attention.head_count"), settings.integer("embedding_length")
    if heads <= 0:
        raise CheckpointError(
            f"{settings.source}: attention.head_count is {heads}; it must be positive", hint="the file is damaged; fetch it again"
        )
    if head_dim is None:
        head_dim = settings.integer("attention.key_length", hidden_size // heads)
        if (value_dim := settings.integer("attention.value_length", head_dim)) != head_dim:
            raise UnsupportedModelError(
                f"{settings.source}: attention.value_length is {value_dim} and keys have {head_dim} elements",
                hint="only values as wide as keys are supported",
            )
    if not settings.integer("expert_count", 0):
        settings.ignore("expert_used_count")
    return {
        "hidden_size": hidden_size,
        "intermediate_size": settings.integer("feed_forward_length") if intermediate_size is None else intermediate_size,
        "num_hidden_layers": num_layers(settings),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.integer("attention.head_count_kv", heads) if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "vocab_size": settings.integer("vocab_size"),
        "max_position_embeddings": settings.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in found.tensors,
        "rope_dimension_count": settings.integer("rope.dimension_count", head_dim),
        "rope_theta": settings.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(settings, found.vectors),
    } | _eps(settings)


def num_layers(settings: Settings) -> int:
    """Those behind them, which predict more than the next token, do not count."""
    return settings.integer("block_count") - settings.integer("nextn_predict_layers", 0)


def experts(settings: Settings, *, count: str = "num_experts", gating: int = 1, scaled: bool = False) -> dict[str, Any]:
    """The settings of experts, by their names in config.json. count: what theirs is called. gating: the number of the router's function,
    the only one that the family has. scaled: whether it multiplies weights. Raises UnsupportedModelError for what it does not have."""
    given = settings.integer("expert_gating_func", 0) or gating
    if given != gating:
        raise UnsupportedModelError(
            f"{settings.source}: expert_gating_func is {given}; of this architecture {gating} is supported", hint="1 is softmax, 2 sigmoid"
        )
    scale = settings.number("expert_weights_scale", 0.0) or 1.0
    if scale != 1.0 and not scaled:
        raise UnsupportedModelError(
            f"{settings.source}: expert_weights_scale is {scale}, and this architecture has no such factor",
            hint="the file was made by another program than this version knows",
        )
    return {
        count: settings.integer("expert_count"),
        "num_experts_per_tok": settings.integer("expert_used_count"),
        "moe_intermediate_size": settings.integer("expert_feed_forward_length", settings.integer("feed_forward_length")),
        "routed_scaling_factor": scale,
    }


def _eps(settings: Settings) -> dict[str, Any]:
    names = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.layer_norm_epsilon": "layer_norm_eps"}
    given = {ours: settings.number(theirs) for theirs, ours in names.items() if theirs in settings}
    if not given:
        raise CheckpointError(
            f"{settings.source} does not give {' or '.join(names)}", hint="the file is incomplete; fetch the checkpoint again"
        )
    return given


def window(settings: Settings) -> int:
    """The sliding window, 0 if there is none or it is as long as the context."""
    size = settings.integer("attention.sliding_window", 0, maximum=sys.maxsize)
    return size if size < settings.integer("context_length") else 0


def layer_types(settings: Settings, period: int | None = None) -> dict[str, Any]:
    """Which layers have the window, as settings of config.json; `period`: every so manieth has none, where the file does not say. What
    the file says of layers that draft is left out, as they are."""
    pattern, count = settings.raw("attention.sliding_window_pattern"), num_layers(settings)
    if isinstance(pattern, list):
        return {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern[:count]]}
    if pattern is None and period is None:
        return {}
    every = settings.integer("attention.sliding_window_pattern", period)
    return {"layer_types": ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(count)]}


def ropes_by_type(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """The scaled table for layers that see everything, a plain one for those with a window. values: as `common` gives them."""
    theta = values["rope_theta"]
    local = {"rope_type": "default", "rope_theta": settings.number("rope.freq_base_swa", theta)}
    full = {"rope_type": "default", **values["rope_scaling"], "rope_theta": theta}
    return {"rope_scaling": None, "rope_parameters": {"full_attention": full, "sliding_attention": local}}


def no_window(settings: Settings) -> None:
    """Raises UnsupportedModelError for a window of which the file does not say which layers have it."""
    if window(settings):
        raise UnsupportedModelError(
            f"{settings.source}: a sliding window is set, but not in which layers", hint="give the model as a Hugging Face directory"
        )


def has_bias(found: GGUFSource, name: str) -> bool:
    """Whether the first layer's tensor of that name has a bias."""
    return f"blk.0.{name}.bias" in found.tensors


def _longrope_factor(settings: Settings, original: int) -> float:
    return longrope_attention_factor(settings.integer("context_length") / original, original)


def _as_stored(value: float) -> float:
    """As a file holds a number: in float32."""
    return struct.unpack("f", struct.pack("f", value))[0]  # type: ignore[no-any-return]


def _rope_scaling(settings: Settings, vectors: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
    kind = settings.text("rope.scaling.type", "linear" if "rope.scale_linear" in settings else "none")
    settings.ignore("rope.scaling.finetuned")
    divisors = vectors.get(ROPE_DIVISORS, ())
    if divisors:
        if kind != "none":
            raise UnsupportedModelError(
                f"{settings.source}: rotary scaling of type {kind!r} together with {ROPE_DIVISORS} is not supported",
                hint="one of the two is how a model is scaled; the file was made by another program than this version knows",
            )
        return {"rope_type": "divisors", "divisors": list(divisors)}
    attention_factor = settings.number("rope.scaling.attn_factor", 1.0)
    original = settings.integer("rope.scaling.original_context_length", settings.integer("context_length"))
    if LONG_DIVISORS in vectors:
        long, short = vectors[LONG_DIVISORS], vectors.get(SHORT_DIVISORS, ())
        return {
            "rope_type": "longrope",
            "long_factor": list(long),
            "short_factor": list(short),
            "original_max_position_embeddings": original,
            **(
                {}
                if _as_stored(attention_factor) == _as_stored(_longrope_factor(settings, original))
                else {"attention_factor": attention_factor}
            ),
        }
    if kind != "yarn" and attention_factor != 1.0:
        raise UnsupportedModelError(
            f"{settings.source}: rope.scaling.attn_factor with rotary scaling of type {kind!r} is not supported", hint="yarn has it"
        )
    match kind:
        case "none":
            settings.ignore("rope.scaling.factor")
            return {}
        case "linear":
            return {"rope_type": "linear", "factor": settings.number("rope.scaling.factor", settings.number("rope.scale_linear", 1.0))}
        case "yarn":
            factor = settings.number("rope.scaling.factor")
            multiplier = settings.number("rope.scaling.yarn_log_multiplier", 0.0)
            scale = yarn_attention_factor(factor, multiplier or None, multiplier or None)
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "attention_factor": attention_factor * scale,
                "beta_fast": settings.number("rope.scaling.yarn_beta_fast", 32.0),
                "beta_slow": settings.number("rope.scaling.yarn_beta_slow", 1.0),
            }
        case _:
            raise UnsupportedModelError(
                f"{settings.source}: rotary scaling of type {kind!r} is not supported", hint="none, linear, yarn are"
            )
