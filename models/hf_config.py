"""Hugging Face `config.json` to `ModelConfig`, with the defaults and the semantics of `transformers`' own classes."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CheckpointError, UnsupportedModelError
from .config import LayerConfig, ModelConfig, RopeConfig, RopeKind
from .rope import yarn_attention_factor
from .settings import MAX_LAYERS, Settings

SOURCE = "config.json"


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What `transformers` assumes where config.json is silent, and which settings its model class reads at all.

    scale: the setting that is the scale of attention, for families that have one.
    """

    defaults: Mapping[str, Any]
    layers: Callable[[Settings, int], tuple[LayerConfig, ...]]
    attention_bias: Literal["no", "qkv", "setting"] = "no"
    mlp_bias: bool = False
    qk_norm: bool = False
    scale: str | None = None
    sinks: bool = False


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Resolves the contents of a config.json.

    Raises UnsupportedModelError for an architecture or a setting that `Decoder` does not implement,
    CheckpointError for settings that are missing, of the wrong type or contradictory.
    """
    model_type = values.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise unsupported_architecture(str(model_type))
    _refuse_other_heads(values)
    settings = Settings({**family.defaults, **values}, SOURCE)
    for name, accepted in _REFUSED_UNLESS.items():
        if name != family.scale and settings.values.get(name) not in (None, *accepted):
            raise UnsupportedModelError(f"{SOURCE}: {name} = {_brief(settings.values[name])} is not supported", hint=_HINTS.get(name))
    for name, is_read in (("attention_bias", family.attention_bias == "setting"), ("mlp_bias", family.mlp_bias)):
        if settings.flag(name, False) and not is_read:
            raise UnsupportedModelError(f"{SOURCE}: {name} is set, which models of type {model_type!r} do not have")

    hidden_size, num_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if num_heads <= 0:
        raise CheckpointError(f"{SOURCE}: num_attention_heads is {num_heads}; it must be positive")
    attention_bias = settings.flag("attention_bias", False)
    max_context = settings.integer("max_position_embeddings")
    return ModelConfig(
        architecture=str(model_type),
        hidden_size=hidden_size,
        intermediate_size=settings.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=settings.integer("num_key_value_heads", num_heads),
        head_dim=settings.integer("head_dim", hidden_size // num_heads),
        vocab_size=settings.integer("vocab_size"),
        max_context=max_context,
        rms_eps=settings.number("rms_norm_eps"),
        rope=_rope(settings, max_context),
        layers=family.layers(settings, settings.integer("num_hidden_layers", maximum=MAX_LAYERS)),
        attention_bias=attention_bias or family.attention_bias == "qkv",
        output_bias=attention_bias,
        mlp_bias=settings.flag("mlp_bias", False),
        qk_norm=family.qk_norm,
        attention_scale=None if family.scale is None else settings.number(family.scale),
        attention_sinks=family.sinks,
        tie_embeddings=settings.flag("tie_word_embeddings", False),
    )


def unsupported_architecture(name: str) -> UnsupportedModelError:
    """The error for a checkpoint of an architecture that no family here implements."""
    return UnsupportedModelError(
        f"the architecture {name!r} is not supported", hint=f"supported architectures: {', '.join(sorted(_FAMILIES))}"
    )


def _refuse_other_heads(values: Mapping[str, Any]) -> None:
    architectures = values.get("architectures")
    if isinstance(architectures, list) and architectures and not any(str(name).endswith("ForCausalLM") for name in architectures):
        raise UnsupportedModelError(
            f"{SOURCE}: {', '.join(map(str, architectures))} is not a model that generates text",
            hint="only models whose architecture ends in ForCausalLM are supported",
        )


def _all_windowed(settings: Settings, count: int) -> tuple[LayerConfig, ...]:
    """Mistral: one window for every layer, `layer_types` only as far as it says the same."""
    window = settings.integer("sliding_window", maximum=sys.maxsize) if "sliding_window" in settings else 0
    kinds = set(settings.items("layer_types")) if "layer_types" in settings else set()
    if kinds - {"sliding_attention" if window else "full_attention"}:
        raise UnsupportedModelError(f"{SOURCE}: layer_types differ from layer to layer, which models of type 'mistral' do not have")
    return (LayerConfig(window=window),) * count


def _no_windows(settings: Settings, count: int) -> tuple[LayerConfig, ...]:
    if "sliding_window" in settings or "sliding_attention" in settings.values.get("layer_types", ()):
        raise UnsupportedModelError(f"{SOURCE}: sliding windows are set, which models of type 'llama' do not have")
    return (LayerConfig(),) * count


def _later_windows(settings: Settings, count: int) -> tuple[LayerConfig, ...]:
    """Qwen: if windows are in use at all, layers from `max_window_layers` on have one."""
    window = settings.integer("sliding_window", 0, maximum=sys.maxsize) if settings.flag("use_sliding_window", False) else 0
    if "layer_types" in settings:
        return tuple(LayerConfig(window=each) for each in _windows_by_type(settings, count, window))
    first = settings.integer("max_window_layers")
    return tuple(LayerConfig(window=window if index >= first else 0) for index in range(count))


def _interleaved_nope(settings: Settings, count: int) -> tuple[LayerConfig, ...]:
    """SmolLM3: some layers without rotary embedding, and a window, if any, on those only."""
    if "no_rope_layers" in settings:
        rope = [bool(flag) for flag in settings.items("no_rope_layers")[:count]]
    else:
        interval = settings.integer("no_rope_layer_interval")
        if interval <= 0:
            raise CheckpointError(f"{SOURCE}: no_rope_layer_interval is {interval}; it must be positive")
        rope = [(index + 1) % interval != 0 for index in range(count)]
    if len(rope) < count:
        raise CheckpointError(f"{SOURCE}: no_rope_layers has {len(rope)} entries for {count} layers")
    window = settings.integer("sliding_window", 0, maximum=sys.maxsize) if settings.flag("use_sliding_window", False) else 0
    on_nope_layers = [0 if use_rope else window for use_rope in rope]
    windows = _windows_by_type(settings, count, window) if "layer_types" in settings else on_nope_layers
    return tuple(LayerConfig(window=each, use_rope=use_rope) for each, use_rope in zip(windows, rope, strict=True))


def _granite_windows(settings: Settings, count: int) -> tuple[LayerConfig, ...]:
    """Granite SWA: three layers of four with a window, and a base of the rotary embedding for every layer, 0 for none."""
    window = settings.integer("sliding_window", 0, maximum=sys.maxsize)
    every_fourth = [window if index % 4 else 0 for index in range(count)]
    windows = _windows_by_type(settings, count, window) if "layer_types" in settings else every_fourth
    theta = _rope(settings, settings.integer("max_position_embeddings")).theta
    thetas = settings.numbers("layer_rope_theta") if "layer_rope_theta" in settings else [theta] * count
    if len(thetas) != count:
        raise CheckpointError(f"{SOURCE}: layer_rope_theta has {len(thetas)} entries for {count} layers")
    if set(thetas) - {0, theta}:
        raise UnsupportedModelError(f"{SOURCE}: layer_rope_theta has other values than 0 and rope_theta = {theta}, which is not supported")
    return tuple(LayerConfig(window=window, use_rope=base != 0) for window, base in zip(windows, thetas, strict=True))


def _windows_by_type(settings: Settings, count: int, window: int) -> list[int]:
    types = settings.items("layer_types")
    if len(types) != count:
        raise CheckpointError(f"{SOURCE}: layer_types has {len(types)} entries for {count} layers")
    for unknown in sorted({str(each) for each in types} - {"full_attention", "sliding_attention"}):
        raise UnsupportedModelError(f"{SOURCE}: layer type {unknown!r} is not supported")
    if "sliding_attention" in types and not window:
        raise CheckpointError(f"{SOURCE}: layer_types has sliding_attention layers, but no sliding window is in use")
    return [window if each == "sliding_attention" else 0 for each in types]


def _rope(settings: Settings, max_context: int) -> RopeConfig:
    """Both spellings: `rope_parameters`, and the older `rope_theta` with `rope_scaling` (which wins, as in `transformers`)."""
    given = settings.values.get("rope_scaling") or settings.values.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{SOURCE}: rope_parameters is {given!r}; it must be an object")
    if any(isinstance(value, dict) for value in given.values()):
        raise UnsupportedModelError(f"{SOURCE}: rotary embeddings that differ by layer type are not supported")
    rope = Settings(given, f"{SOURCE}, rope_parameters")
    theta = rope.number("rope_theta", settings.number("rope_theta"))
    if rope.number("partial_rotary_factor", settings.number("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError(f"{SOURCE}: rotary embedding of a part of each head (partial_rotary_factor) is not supported")
    name = rope.text("rope_type", rope.text("type", "default"))
    kind = _ROPE_KINDS.get(name)
    if kind is None:
        raise UnsupportedModelError(
            f"{SOURCE}: rotary embedding of type {name!r} is not supported", hint=f"supported types: {', '.join(_ROPE_KINDS)}"
        )
    unknown = sorted(given.keys() - _ROPE_KEYS[kind] - {"rope_theta", "rope_type", "type", "partial_rotary_factor"})
    if unknown:
        raise UnsupportedModelError(f"{SOURCE}: rotary embedding of type {name!r} with {', '.join(unknown)} is not supported")
    original = settings.integer("original_max_position_embeddings", rope.integer("original_max_position_embeddings", max_context))
    match kind:
        case "linear":
            return RopeConfig(theta=theta, kind=kind, factor=rope.number("factor"))
        case "llama3":
            return RopeConfig(
                theta=theta,
                kind=kind,
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_context=original,
            )
        case "yarn":
            return _yarn(rope, theta, original, max_context)
        case _:
            return RopeConfig(theta=theta)


def _yarn(rope: Settings, theta: float, original: int, max_context: int) -> RopeConfig:
    factor = rope.number("factor", max_context / max(original, 1))
    mscale = rope.number("mscale") if "mscale" in rope else None
    mscale_all_dim = rope.number("mscale_all_dim") if "mscale_all_dim" in rope else None
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_context=original,
        attention_factor=rope.number("attention_factor", yarn_attention_factor(factor, mscale, mscale_all_dim)),
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        truncate=rope.flag("truncate", True),
    )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_ROPE_KINDS: dict[str, RopeKind] = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
_SCALING_KEYS = {"factor", "original_max_position_embeddings"}
_ROPE_KEYS: dict[RopeKind, set[str]] = {
    "none": set(),
    "linear": _SCALING_KEYS,
    "llama3": _SCALING_KEYS | {"low_freq_factor", "high_freq_factor"},
    "yarn": _SCALING_KEYS | {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
}

_QUANTIZED_HINT = (
    "FP8 is supported as compressed-tensors (float-quantized) and Hugging Face (fp8) publish it: weights with scales per tensor, per "
    "output channel or, with dynamic scales of activations, per 128 x 128; activations with dynamic scales, or static per tensor. "
    "Otherwise give the unquantized checkpoint (and `engine build --quantize int8` or `int4`), or a GGUF file"
)

# Settings that would change what the model computes, and the values under which they do not.
_REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {
    "quantization_config": ({},),
    "compression_config": ({},),
    "per_layer_config": ({},),
    "hidden_act": ("silu", "swish"),
    "rope_interleaved": (False,),
    "attn_logit_softcapping": (0, 0.0),
    "final_logit_softcapping": (0, 0.0),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "scale_emb": (1, 1.0),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "attention_sinks": (False, 0),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
}
_HINTS = {
    "quantization_config": _QUANTIZED_HINT,
    "compression_config": _QUANTIZED_HINT,
    "hidden_act": "only the silu activation is supported",
}

_COMMON: dict[str, Any] = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False}
_QWEN: dict[str, Any] = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}
_FAMILIES: dict[str, _Family] = {
    "llama": _Family(
        defaults=_COMMON | {"max_position_embeddings": 2048},
        layers=_no_windows,
        attention_bias="setting",
        mlp_bias=True,
    ),
    "mistral": _Family(
        defaults=_COMMON | {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
        layers=_all_windowed,
    ),
    "qwen2": _Family(
        defaults=_COMMON | _QWEN | {"num_key_value_heads": 32},
        layers=_later_windows,
        attention_bias="qkv",
    ),
    "qwen3": _Family(
        defaults=_COMMON | _QWEN | {"num_key_value_heads": 32, "head_dim": 128},
        layers=_later_windows,
        attention_bias="setting",
        qk_norm=True,
    ),
    "smollm3": _Family(
        defaults=_COMMON
        | {
            "max_position_embeddings": 32768,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
        },
        layers=_interleaved_nope,
        attention_bias="setting",
        mlp_bias=True,
    ),
    "granite_swa": _Family(
        defaults=_COMMON
        | {
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "sliding_window": 128,
            "attention_multiplier": 1.0,
        },
        layers=_granite_windows,
        attention_bias="setting",
        mlp_bias=True,
        scale="attention_multiplier",
        sinks=True,
    ),
}
