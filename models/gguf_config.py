"""GGUF metadata to `ModelConfig`, with the meaning that llama.cpp gives it."""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..errors import CheckpointError, UnsupportedModelError
from .config import LayerConfig, ModelConfig, RopeConfig
from .rope import yarn_attention_factor
from .settings import MAX_LAYERS, Settings

# Keys under the architecture's name that are read here, or that change nothing the decoder computes.
_KNOWN_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "expert_count",
        "expert_used_count",
    }
)


def config_from_gguf(
    metadata: Mapping[str, Any], tensor_names: Collection[str], rope_divisors: tuple[float, ...], source: str
) -> ModelConfig:
    """Resolves the metadata of a GGUF file.

    tensor_names: the names of its tensors, which alone say whether biases exist and whether the embedding is tied.
    rope_divisors: the values of its tensor rope_freqs.weight, empty if there is none. source: the file's name.
    Raises UnsupportedModelError for an architecture or a setting that `Decoder` does not implement, CheckpointError
    for metadata that is missing, of the wrong type or contradictory.
    """
    architecture = Settings(metadata, source).text("general.architecture")
    layers_of = _LAYERS.get(architecture)
    if layers_of is None:
        raise UnsupportedModelError(
            f"{source}: the GGUF architecture {architecture!r} is not supported",
            hint=f"supported GGUF architectures: {', '.join(sorted(_LAYERS))}",
        )
    prefix = f"{architecture}."
    settings = Settings({key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}, source)
    unknown = sorted(settings.values.keys() - _KNOWN_KEYS)
    if unknown:
        raise UnsupportedModelError(f"{source}: the settings {', '.join(prefix + key for key in unknown)} are not supported")
    if settings.integer("expert_count", 0):
        raise UnsupportedModelError(f"{source}: mixtures of experts ({prefix}expert_count) are not supported")
    hidden_size, num_heads = settings.integer("embedding_length"), settings.integer("attention.head_count")
    if num_heads <= 0:
        raise CheckpointError(f"{source}: {prefix}attention.head_count is {num_heads}; it must be positive")
    head_dim = settings.integer("attention.key_length", hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.integer(key, head_dim) != head_dim:
            raise UnsupportedModelError(f"{source}: {prefix}{key} = {settings.integer(key)} with heads of {head_dim} is not supported")
    max_context = settings.integer("context_length")
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        intermediate_size=settings.integer("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=settings.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(settings, metadata, source),
        max_context=max_context,
        rms_eps=settings.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(settings, max_context, rope_divisors),
        layers=layers_of(settings, settings.integer("block_count", maximum=MAX_LAYERS), max_context),
        attention_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in tensor_names,
        output_bias="blk.0.attn_output.bias" in tensor_names,
        mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
        qk_norm=architecture == "qwen3",
        tie_embeddings="output.weight" not in tensor_names,
    )


def _vocab_size(settings: Settings, metadata: Mapping[str, Any], source: str) -> int:
    return settings.integer("vocab_size") if "vocab_size" in settings else len(Settings(metadata, source).items("tokenizer.ggml.tokens"))


def _window(settings: Settings, max_context: int) -> int:
    window = settings.integer("attention.sliding_window", 0, maximum=sys.maxsize)
    return window if window < max_context else 0


def _same_everywhere(settings: Settings, count: int, max_context: int) -> tuple[LayerConfig, ...]:
    """Llama and Mistral, which GGUF stores under one name."""
    return (LayerConfig(window=_window(settings, max_context)),) * count


def _full(settings: Settings, count: int, max_context: int) -> tuple[LayerConfig, ...]:
    if _window(settings, max_context):
        raise UnsupportedModelError(f"{settings.source}: a sliding window is set, but not in which layers")
    return (LayerConfig(),) * count


def _interleaved_nope(settings: Settings, count: int, max_context: int) -> tuple[LayerConfig, ...]:
    """SmolLM3: every fourth layer has no rotary embedding; GGUF has no key for it."""
    layer = _full(settings, 1, max_context)[0]
    return tuple(LayerConfig(window=layer.window, use_rope=(index + 1) % 4 != 0) for index in range(count))


def _rope(settings: Settings, max_context: int, divisors: tuple[float, ...]) -> RopeConfig:
    theta = settings.number("rope.freq_base", 10000.0)
    kind = settings.text("rope.scaling.type", "linear" if "rope.scale_linear" in settings else "none")
    if divisors:
        if kind != "none":
            raise UnsupportedModelError(
                f"{settings.source}: rotary scaling of type {kind!r} together with rope_freqs.weight is not supported"
            )
        return RopeConfig(theta=theta, kind="divisors", divisors=divisors)
    attention_factor = settings.number("rope.scaling.attn_factor", 1.0)
    if kind != "yarn" and attention_factor != 1.0:
        raise UnsupportedModelError(f"{settings.source}: rope.scaling.attn_factor with rotary scaling of type {kind!r} is not supported")
    match kind:
        case "none":
            return RopeConfig(theta=theta)
        case "linear":
            factor = settings.number("rope.scaling.factor", settings.number("rope.scale_linear", 1.0))
            return RopeConfig(theta=theta, kind="linear", factor=factor)
        case "yarn":
            factor = settings.number("rope.scaling.factor")
            return RopeConfig(
                theta=theta,
                kind="yarn",
                factor=factor,
                original_max_context=settings.integer("rope.scaling.original_context_length", max_context),
                attention_factor=attention_factor * yarn_attention_factor(factor, None, None),
                beta_fast=settings.number("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow=settings.number("rope.scaling.yarn_beta_slow", 1.0),
            )
        case _:
            raise UnsupportedModelError(
                f"{settings.source}: rotary scaling of type {kind!r} is not supported", hint="none, linear, yarn are"
            )


_LAYERS: dict[str, Callable[[Settings, int, int], tuple[LayerConfig, ...]]] = {
    "llama": _same_everywhere,
    "qwen2": _full,
    "qwen3": _full,
    "smollm3": _interleaved_nope,
}
