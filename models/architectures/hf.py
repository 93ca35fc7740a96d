"""Reading config.json: the settings that many families share, with the defaults and the semantics of `transformers`' own classes."""

import math
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, UnsupportedModelError
from ..parts.activations import Activation
from ..parts.attention import AttentionSpec, TemperatureSpec
from ..parts.layer_inputs import LayerInputsSpec
from ..parts.mlp import MLPSpec
from ..parts.norm import NormSpec
from ..parts.rope import RopeSpec, longrope_attention_factor, yarn_attention_factor
from ..settings import MAX_LAYERS, Settings
from ..spec import Channel, EmbedSpec, HeadSpec, LayerNorms, LayerSpec, Mixer, ModelSpec

SOURCE = "config.json"
_PLAIN_EMBED, _PLAIN_HEAD = EmbedSpec(), HeadSpec()
DAMAGED = "the file was edited or damaged; fetch the checkpoint again"

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
    "xielu": "xielu",
}


def before(norm: NormSpec) -> LayerNorms:
    """Norms before mixer and channel, as in Llama."""
    return LayerNorms(before_mixer=norm, before_channel=norm)


def after(norm: NormSpec) -> LayerNorms:
    """Norms of what mixer and channel give, and none before."""
    return LayerNorms(after_mixer=norm, after_channel=norm)


def around(norm: NormSpec) -> LayerNorms:
    """Norms before and after both."""
    return LayerNorms(before_mixer=norm, after_mixer=norm, before_channel=norm, after_channel=norm)


def rms(settings: Settings, name: str = "rms_norm_eps") -> NormSpec:
    """An RMSNorm with the configuration's eps."""
    return NormSpec(kind="rms", eps=settings.number(name))


def layer_norm(settings: Settings, name: str = "layer_norm_eps", *, bias: bool = True) -> NormSpec:
    """A LayerNorm with the configuration's eps."""
    return NormSpec(kind="layer", eps=settings.number(name), bias=bias)


def num_layers(settings: Settings) -> int:
    return settings.integer("num_hidden_layers", maximum=MAX_LAYERS)


def activation(settings: Settings, name: str = "hidden_act") -> Activation:
    """Raises UnsupportedModelError for one that is not implemented."""
    given = settings.text(name)
    if given not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{settings.source}: the activation {given!r} ({name}) is not supported", hint=f"supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[given]


def mlp(settings: Settings, *, activation_name: str = "hidden_act", **fields: Any) -> MLPSpec:
    """fields: of MLPSpec, instead of what the configuration says, or beyond it."""
    if "activation" not in fields:
        fields["activation"] = activation(settings, activation_name)
    size = fields.pop("size", None)
    return MLPSpec(size=settings.integer("intermediate_size") if size is None else size, **fields)


def num_heads(settings: Settings) -> int:
    count = settings.integer("num_attention_heads")
    if count <= 0:
        raise CheckpointError(f"{settings.source}: num_attention_heads is {count}; it must be positive", hint=DAMAGED)
    return count


def head_size(settings: Settings) -> int:
    return settings.integer("head_dim", settings.integer("hidden_size") // num_heads(settings))


def attention(
    settings: Settings,
    *,
    ropes: Sequence[RopeSpec | None] | None = None,
    windows: Sequence[int] | None = None,
    scale: float | None = None,
    **fields: Any,
) -> tuple[AttentionSpec, ...]:
    """The attention of every layer.

    ropes, windows: by layer (default: the configuration's one table, and none). scale: default head_dim ** -0.5. fields: of
    AttentionSpec, the same in all layers.
    """
    count, heads, dim = num_layers(settings), num_heads(settings), head_size(settings)
    ropes = (rope(settings),) * count if ropes is None else ropes
    windows = (0,) * count if windows is None else windows
    spec = AttentionSpec(
        num_heads=heads,
        num_kv_heads=settings.integer("num_key_value_heads", heads),
        head_dim=dim,
        rope=None,
        scale=dim**-0.5 if scale is None else scale,
        **fields,
    )
    return tuple(replace(spec, rope=table, window=window) for table, window in zip(ropes, windows, strict=True))


def dense(
    settings: Settings,
    *,
    mixers: Sequence[Mixer],
    channel: Channel | Sequence[Channel],
    norms: LayerNorms,
    final: NormSpec | None,
    parallel: bool = False,
    multiplier: float = 1.0,
    normalizes_sums: bool = False,
    max_context: int | None = None,
    embed: EmbedSpec = _PLAIN_EMBED,
    head: HeadSpec = _PLAIN_HEAD,
    scaled: bool = False,
    layer_inputs: LayerInputsSpec | None = None,
) -> ModelSpec:
    """A model whose layers differ in their mixers, and in their channels where these are given by layer.

    max_context: instead of what the configuration says.
    """
    channels = channel if isinstance(channel, Sequence) else (channel,) * len(mixers)
    fields: dict[str, Any] = {"norms": norms, "parallel": parallel, "multiplier": multiplier}
    fields |= {"normalizes_sums": normalizes_sums, "scaled": scaled}
    return ModelSpec(
        architecture=settings.text("model_type"),
        hidden_size=settings.integer("hidden_size"),
        vocab_size=settings.integer("vocab_size"),
        max_context=stretched(settings) if max_context is None else max_context,
        layers=tuple(LayerSpec(mixer=mixer, channel=each, **fields) for mixer, each in zip(mixers, channels, strict=True)),
        embed=embed,
        final=final,
        head=replace(head, tied=settings.flag("tie_word_embeddings", False)),
        layer_inputs=layer_inputs,
    )


def stretched(settings: Settings) -> int:
    """The context of a model: max_position_embeddings, unless rotary scaling stretches it and this number was left as it was trained.

    As serving engines read it: with yarn the original context times its factor, with linear scaling max_position_embeddings times it.
    """
    context, given = settings.integer("max_position_embeddings"), rope_settings(settings)
    scaling = Settings(given, f"{settings.source}, rope_parameters")
    if "factor" not in scaling or _is_by_layer_type(given):
        return context
    match scaling.text("rope_type", scaling.text("type", "default")):
        case "yarn":
            return max(context, int(_original(scaling, settings) * scaling.number("factor")))
        case "linear":
            return int(context * scaling.number("factor"))
    return context


def rounded(value: float, settings: Settings) -> float:
    """A number as a tensor of the checkpoint's dtype holds it: where the model's own code makes a tensor of it."""
    import torch

    dtype = settings.raw("dtype") or settings.raw("torch_dtype")
    return float(torch.tensor(value, dtype={"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(dtype), torch.float32)))


def windows_by_type(settings: Settings, window: int, default: Callable[[int], bool]) -> tuple[int, ...]:
    """The window of every layer: `window` where `layer_types`, or by default `default(layer)`, says that it slides, else 0."""
    count = num_layers(settings)
    if "layer_types" not in settings:
        return tuple(window if default(index) else 0 for index in range(count))
    types = settings.items("layer_types")
    if len(types) != count:
        raise CheckpointError(f"{settings.source}: layer_types has {len(types)} entries for {count} layers", hint=DAMAGED)
    for unknown in sorted({str(each) for each in types} - {"full_attention", "sliding_attention"}):
        raise UnsupportedModelError(
            f"{settings.source}: layer type {unknown!r} is not supported", hint="full_attention and sliding_attention are"
        )
    if "sliding_attention" in types and not window:
        raise CheckpointError(f"{settings.source}: layer_types has sliding_attention layers, but no sliding window is in use", hint=DAMAGED)
    return tuple(window if each == "sliding_attention" else 0 for each in types)


def window_size(settings: Settings) -> int:
    """`sliding_window`, 0 if there is none."""
    return settings.integer("sliding_window", 0, maximum=sys.maxsize)


def rope_settings(settings: Settings) -> dict[str, Any]:
    """`rope_parameters`, or the older `rope_scaling`, which wins as in `transformers`; empty if neither is given."""
    given = settings.raw("rope_scaling") or settings.raw("rope_parameters") or {}
    settings.ignore("rope_scaling", "rope_parameters")
    if not isinstance(given, dict):
        raise CheckpointError(f"{settings.source}: rope_parameters is {given!r}; it must be an object", hint=DAMAGED)
    return given


def temperature(settings: Settings) -> TemperatureSpec | None:
    """By how much queries grow with their position: two numbers that stand among those of the rotary embedding. None if they do not."""
    scaling = Settings(rope_settings(settings), f"{settings.source}, rope_parameters")
    beta = scaling.number("llama_4_scaling_beta", 0.0)
    return TemperatureSpec(beta=beta, length=scaling.integer("original_max_position_embeddings")) if beta else None


def _is_by_layer_type(given: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in given.values())


def rope(
    settings: Settings,
    layer_type: str | None = None,
    *,
    theta_name: str = "rope_theta",
    scaled: bool = True,
    given: Mapping[str, Any] | None = None,
    head_dim: int | None = None,
) -> RopeSpec:
    """The table that `rope_parameters`, or the older `rope_theta` with `rope_scaling`, describes.

    layer_type: the key of the table among those for each type of layer, for a family that has several. theta_name, scaled: the older name
    of its base, and whether the older `rope_scaling` is of this table. given, head_dim: the table's description and the head size of its
    layers, instead of what the configuration says of all. Raises UnsupportedModelError for scaling that is not implemented.
    """
    given = rope_settings(settings) if given is None else given
    if _is_by_layer_type(given):
        if layer_type is None or not isinstance(given.get(layer_type), dict):
            raise UnsupportedModelError(
                f"{settings.source}: rotary embeddings that differ by layer type are not supported for this family",
                hint="the configuration is of a newer kind than this version knows",
            )
        given = given[layer_type]
    elif not scaled:
        given = {}
    scaling = Settings(given, f"{settings.source}, rope_parameters")
    theta = scaling.number("rope_theta", settings.number(theta_name, 10000.0))
    name = scaling.text("rope_type", scaling.text("type", "default"))
    size = head_size(settings) if head_dim is None else head_dim
    width = size if name == "proportional" else _rotary_width(scaling, settings, size)
    build = _ROPES.get(name)
    if build is None:
        raise UnsupportedModelError(
            f"{settings.source}: rotary embedding of type {name!r} is not supported", hint=f"supported types: {', '.join(_ROPES)}"
        )
    scaling.ignore("finetuned", "mrope_section", "llama_4_scaling_beta", "max_position_embeddings")
    table = build(scaling, settings, RopeSpec(theta=theta, width=width))
    if unknown := sorted(scaling.unknown()):
        raise UnsupportedModelError(
            f"{settings.source}: rotary embedding of type {name!r} with {', '.join(unknown)} is not supported",
            hint="a setting that nobody reads may change what the model computes; remove it from the file if it does not",
        )
    return table


def _rotary_width(scaling: Settings, settings: Settings, size: int) -> int:
    """How many elements of each head rotate: all, unless a setting says how many, or models of this type have one that says which part."""
    name = "partial_rotary_factor"
    if "rope_dimension_count" in settings:
        scaling.ignore(name)
        return settings.integer("rope_dimension_count")
    if settings.has_default(name):
        return int(size * scaling.number(name, settings.number(name, 1.0)))
    if (factor := scaling.number(name, 1.0)) != 1:
        raise UnsupportedModelError(
            f"{scaling.source}: {name} = {factor} is not known of models of type {settings.text('model_type')!r}: all of each head rotates",
            hint="transformers does not read it for them; remove it from the file if the model was trained without it",
        )
    return size


def _original(scaling: Settings, settings: Settings) -> int:
    context = settings.integer("max_position_embeddings")
    return settings.integer("original_max_position_embeddings", scaling.integer("original_max_position_embeddings", context))


def _plain(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    return table


def _linear(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    scaling.ignore("original_max_position_embeddings")
    return replace(table, kind="linear", factor=scaling.number("factor"))


def _llama3(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    return replace(
        table,
        kind="llama3",
        factor=scaling.number("factor"),
        low_freq_factor=scaling.number("low_freq_factor"),
        high_freq_factor=scaling.number("high_freq_factor"),
        original_max_context=_original(scaling, settings),
    )


def _yarn(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    original = _original(scaling, settings)
    factor = scaling.number("factor", settings.integer("max_position_embeddings") / max(original, 1))
    mscale = scaling.number("mscale") if "mscale" in scaling else None
    mscale_all_dim = scaling.number("mscale_all_dim") if "mscale_all_dim" in scaling else None
    return replace(
        table,
        kind="yarn",
        factor=factor,
        original_max_context=original,
        attention_factor=scaling.number("attention_factor", yarn_attention_factor(factor, mscale, mscale_all_dim)),
        beta_fast=scaling.number("beta_fast", 0.0) or 32.0,
        beta_slow=scaling.number("beta_slow", 0.0) or 1.0,
        truncate=scaling.flag("truncate", True),
    )


def _telechat3(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    """YaRN whose factor is the stretch, with a smaller magnitude. Source: the model's own configuration and code."""
    original = _original(scaling, settings)
    factor = settings.integer("max_position_embeddings") / original
    scaling.ignore("factor", "mscale", "mscale_all_dim")
    magnitude = 1.0 if factor <= 1 else 0.07 * math.log(factor) + 1.0
    return replace(_yarn(scaling, settings, table), factor=factor, attention_factor=magnitude)


def _dynamic(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    """Stretches for sequences longer than max_position_embeddings, which are not served. With alpha (Hunyuan) theta is another one."""
    scaling.ignore("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    if not (alpha := scaling.number("alpha", 0.0)):
        return table
    theta = table.theta * alpha ** (table.width / (table.width - 2))
    return replace(table, theta=struct.unpack("f", struct.pack("f", theta))[0])  # frequencies are powers of a float32


def _longrope(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    context, original = settings.integer("max_position_embeddings"), _original(scaling, settings)
    factor = scaling.number("factor", context / max(original, 1))
    scaling.ignore("long_mscale", "short_mscale")
    return replace(
        table,
        kind="longrope",
        divisors=tuple(scaling.numbers("long_factor")),
        short_divisors=tuple(scaling.numbers("short_factor")),
        original_max_context=original,
        attention_factor=scaling.number("attention_factor", longrope_attention_factor(factor, original)),
    )


def _proportional(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    """The frequencies of a whole head, of which only the first part turns."""
    pairs = table.width // 2
    turning = int(scaling.number("partial_rotary_factor", 1.0) * table.width // 2)
    return replace(table, kind="linear", factor=scaling.number("factor", 1.0), still=pairs - turning)


def _divisors(scaling: Settings, settings: Settings, table: RopeSpec) -> RopeSpec:
    """How GGUF states llama3 scaling."""
    return replace(table, kind="divisors", divisors=tuple(scaling.numbers("divisors")))


_ROPES: dict[str, Callable[[Settings, Settings, RopeSpec], RopeSpec]] = {
    "default": _plain,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "deepseek_yarn": _yarn,
    "telechat3-yarn": _telechat3,
    "dynamic": _dynamic,
    "longrope": _longrope,
    "su": _longrope,
    "proportional": _proportional,
    "divisors": _divisors,
}
