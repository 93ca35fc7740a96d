"""config.json to `ModelConfig`, against what `transformers`' own configuration classes make of the same file."""

from typing import Any

import pytest
import transformers

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.config import LayerConfig, ModelConfig, RopeConfig
from engine.models.hf_config import config_from_hf

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "granite_swa"]

# What files in the wild say beyond their sizes; old ones spell rotary embedding out of `rope_parameters`.
IN_THE_WILD: dict[str, dict[str, Any]] = {
    "llama-2": {"model_type": "llama", "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "pretraining_tp": 1, "rope_scaling": None},
    "llama-3.1": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "smollm2": {
        "model_type": "llama",
        "rope_theta": 100000,
        "rope_interleaved": False,
        "tie_word_embeddings": True,
        "is_llama_config": True,
    },
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral-0.1": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4096, "rope_theta": 10000.0},
    "mistral-0.2": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None, "rope_theta": 1e6, "head_dim": 32},
    "qwen2": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": 4,
        "use_mrope": False,
    },
    "qwen2-windows": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 4,
    },
    "qwen2-yarn": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 128, "attention_bias": False, "sliding_window": None},
    "smollm3": {"model_type": "smollm3", "num_key_value_heads": 2, "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0], "sliding_window": None},
    "granite_swa": {"model_type": "granite_swa", "num_key_value_heads": 2, "layer_rope_theta": [0, 10000, 10000.0, 10000, 0, 10000]},
    "granite_swa-windows": {"model_type": "granite_swa", "attention_multiplier": 0.0625, "layer_types": ["sliding_attention"] * 6},
    "smollm3-windows": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 32, "no_rope_layer_interval": 2},
}


def resolved(config: Any) -> ModelConfig:
    """What a `transformers` configuration object describes, read off its attributes after all defaults are in."""
    kind = config.model_type
    windows = [config.sliding_window or 0 if kind == "mistral" else 0] * config.num_hidden_layers
    if kind in ("qwen2", "qwen3", "smollm3", "granite_swa"):
        windows = [config.sliding_window if layer == "sliding_attention" else 0 for layer in config.layer_types]
    by_layer = {"smollm3": "no_rope_layers", "granite_swa": "layer_rope_theta"}
    rope = [bool(flag) for flag in getattr(config, by_layer[kind])] if kind in by_layer else [True] * config.num_hidden_layers
    bias = bool(getattr(config, "attention_bias", False))
    return ModelConfig(
        architecture=kind,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_context=config.max_position_embeddings,
        rms_eps=config.rms_norm_eps,
        rope=resolved_rope(config.rope_parameters),
        layers=tuple(LayerConfig(window=window, use_rope=use_rope) for window, use_rope in zip(windows, rope, strict=False)),
        attention_bias=bias or kind == "qwen2",
        output_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=kind == "qwen3",
        attention_scale=getattr(config, "attention_multiplier", None),
        attention_sinks=kind == "granite_swa",
        tie_embeddings=config.tie_word_embeddings,
    )


def resolved_rope(parameters: dict[str, Any]) -> RopeConfig:
    theta = float(parameters["rope_theta"])
    match parameters["rope_type"]:
        case "default":
            return RopeConfig(theta=theta)
        case "linear":
            return RopeConfig(theta=theta, kind="linear", factor=parameters["factor"])
        case "llama3":
            return RopeConfig(
                theta=theta,
                kind="llama3",
                factor=parameters["factor"],
                low_freq_factor=parameters["low_freq_factor"],
                high_freq_factor=parameters["high_freq_factor"],
                original_max_context=parameters["original_max_position_embeddings"],
            )
        case "yarn":
            return RopeConfig(
                theta=theta,
                kind="yarn",
                factor=parameters["factor"],
                original_max_context=parameters["original_max_position_embeddings"],
                # 0.1 ln(4) + 1, from the YaRN paper
                attention_factor=1.138629436111989,
            )
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("name", IN_THE_WILD)
def test_reads_what_transformers_reads(name: str) -> None:
    values = SIZES | IN_THE_WILD[name]
    config = transformers.AutoConfig.for_model(**values)
    assert config_from_hf(values) == resolved(config)


@pytest.mark.parametrize("name", IN_THE_WILD)
def test_reads_what_transformers_writes(name: str) -> None:
    config = transformers.AutoConfig.for_model(**SIZES | IN_THE_WILD[name])
    assert config_from_hf(config.to_dict()) == resolved(config)
    assert config_from_hf(config.to_diff_dict()) == resolved(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_assumes_what_transformers_assumes(architecture: str) -> None:
    values = SIZES | {"model_type": architecture, "num_attention_heads": 32, "hidden_size": 1024}
    config = config_from_hf(values)
    assert config == resolved(transformers.AutoConfig.for_model(**values))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "smollm3"])
def test_attention_bias_is_on_all_four_projections(architecture: str) -> None:
    config = config_from_hf(SIZES | {"model_type": architecture, "attention_bias": True, "num_key_value_heads": 4})
    assert config.attention_bias
    assert config.output_bias


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": None}, "None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "llama4", "rope_theta": 10000.0}}, "llama4"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"sliding_window": 128}, "sliding windows"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        ({"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention"] * 6}, "layer_types"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 6}, "chunked_attention"),
        ({"per_layer_config": {"0": {"hidden_size": 3}}}, "per_layer_config"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"model_type": "granite_swa", "residual_multiplier": 0.5}, "residual_multiplier"),
        ({"model_type": "granite_swa", "layer_rope_theta": [10000.0] * 5 + [500.0]}, "layer_rope_theta"),
    ],
)
def test_refuses_what_the_decoder_does_not_compute(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        config_from_hf(SIZES | {"model_type": "llama"} | values)


def test_an_unknown_architecture_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        config_from_hf({"model_type": "mamba"})
    assert caught.value.hint is not None
    assert all(architecture in caught.value.hint for architecture in ARCHITECTURES)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "96"}, "hidden_size"),
        ({"hidden_size": -96}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"head_dim": 7}, "odd head size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 0}, "layers"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_theta": 0.5}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "factor"),
        ({"rope_scaling": "linear"}, "rope_parameters"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0}}, "high_freq_factor"),
        ({"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["sliding_attention"] * 6}, "no sliding window"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ({"model_type": "granite_swa", "layer_rope_theta": [0]}, "layer_rope_theta"),
    ],
)
def test_settings_that_cannot_be_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        config_from_hf(SIZES | {"model_type": "llama"} | values)
