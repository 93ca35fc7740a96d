"""config.json to `ModelSpec`, against what `transformers`' own configuration classes make of the same file."""

import dataclasses
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from strange_settings import STRANGE
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.artifacts.store.keys import flatten
from engine.errors import CheckpointError, EngineError, UnsupportedModelError
from engine.models.architectures.registry import HF, spec_from_hf
from engine.models.parts.attention import AttentionSpec, QKNormSpec
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.norm import NormSpec
from engine.models.parts.rope import RopeSpec
from engine.models.spec import EmbedSpec, HeadSpec, LayerNorms, LayerSpec, ModelSpec

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "granite_swa"]

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
    "granite_swa-tables": {"model_type": "granite_swa", "layer_rope_theta": [0, 10000.0, 500.0, 10000.0, 0, 500.0]},
    "granite": {
        "model_type": "granite",
        "num_key_value_heads": 2,
        "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "smollm3-windows": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 32, "no_rope_layer_interval": 2},
}


# Where scaling stretches it; max_position_embeddings elsewhere.
CONTEXTS = {"llama-linear": 4 * 2048, "qwen2-yarn": 4 * 32768}


def read(values: dict[str, Any]) -> ModelSpec:
    return spec_from_hf(values)[0]


def resolved(config: Any, max_context: int | None = None) -> ModelSpec:
    """What a `transformers` configuration object describes, read off its attributes after all defaults are in."""
    kind, count = config.model_type, config.num_hidden_layers
    windows = [config.sliding_window or 0 if kind == "mistral" else 0] * count
    if kind in ("qwen2", "qwen3", "smollm3", "granite_swa"):
        windows = [config.sliding_window if layer == "sliding_attention" else 0 for layer in config.layer_types]
    bias = bool(getattr(config, "attention_bias", False))
    norm = NormSpec(eps=config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = tuple(
        LayerSpec(
            mixer=AttentionSpec(
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_key_value_heads,
                head_dim=head_dim,
                rope=rope,
                scale=getattr(config, "attention_multiplier", head_dim**-0.5),
                window=window,
                qkv_bias=bias or kind == "qwen2",
                output_bias=bias,
                qk_norm=QKNormSpec(norm=norm) if kind == "qwen3" else None,
                sinks=kind == "granite_swa",
            ),
            channel=MLPSpec(size=config.intermediate_size, bias=bool(getattr(config, "mlp_bias", False))),
            norms=LayerNorms(before_mixer=norm, before_channel=norm),
            multiplier=getattr(config, "residual_multiplier", 1.0),
        )
        for window, rope in zip(windows, resolved_ropes(config, head_dim), strict=True)
    )
    return ModelSpec(
        architecture=kind,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_context=max_context or config.max_position_embeddings,
        layers=layers,
        embed=EmbedSpec(multiplier=getattr(config, "embedding_multiplier", 1.0)),
        final=norm,
        head=HeadSpec(tied=config.tie_word_embeddings, multiplier=1 / getattr(config, "logits_scaling", 1.0)),
    )


def resolved_ropes(config: Any, width: int) -> list[RopeSpec | None]:
    table, count = resolved_rope(config.rope_parameters, width), config.num_hidden_layers
    match config.model_type:
        case "smollm3":
            return [table if rotates else None for rotates in config.no_rope_layers[:count]]
        case "granite_swa":
            return [replace(table, theta=float(theta)) if theta else None for theta in config.layer_rope_theta]
    return [table] * count


def resolved_rope(parameters: dict[str, Any], width: int) -> RopeSpec:
    table = RopeSpec(theta=float(parameters["rope_theta"]), width=width)
    match parameters["rope_type"]:
        case "default":
            return table
        case "linear":
            return replace(table, kind="linear", factor=parameters["factor"])
        case "llama3":
            return replace(
                table,
                kind="llama3",
                factor=parameters["factor"],
                low_freq_factor=parameters["low_freq_factor"],
                high_freq_factor=parameters["high_freq_factor"],
                original_max_context=parameters["original_max_position_embeddings"],
            )
        case "yarn":
            return replace(
                table,
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
    assert read(values) == resolved(config, CONTEXTS.get(name))


@pytest.mark.parametrize("name", IN_THE_WILD)
def test_reads_what_transformers_writes(name: str) -> None:
    config = transformers.AutoConfig.for_model(**SIZES | IN_THE_WILD[name])
    assert read(config.to_dict()) == resolved(config, CONTEXTS.get(name))
    assert read(config.to_diff_dict()) == resolved(config, CONTEXTS.get(name))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_assumes_what_transformers_assumes(architecture: str) -> None:
    values = SIZES | {"model_type": architecture, "num_attention_heads": 32, "hidden_size": 1024}
    assert read(values) == resolved(transformers.AutoConfig.for_model(**values))


# What `transformers` has a class of; the others' code lies beside their weights.
@pytest.mark.parametrize("model_type", sorted(HF.keys() & CONFIG_MAPPING.keys()))
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    kind, entry = CONFIG_MAPPING[model_type], HF[model_type]
    theirs = {field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    common = entry.settings(theirs, "config.json")
    named = {entry.aliases.get(name, name) for name in theirs}
    unlike = {name: value for name, value in entry.defaults.items() if name in named and common.raw(name) != value}
    assert unlike == {}
    if isinstance(kind.default_theta, float):
        assert entry.defaults.get("rope_theta", 10000.0) == kind.default_theta


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "smollm3"])
def test_attention_bias_is_on_all_four_projections(architecture: str) -> None:
    spec = read(SIZES | {"model_type": architecture, "attention_bias": True, "num_key_value_heads": 4})
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    assert {(mixer.qkv_bias, mixer.output_bias) for mixer in mixers} == {(True, True)}


LINEAR, YARN = {"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("context", "scaling", "expected"),
    [
        (4096, LINEAR, 16384),
        (4096, YARN | {"original_max_position_embeddings": 1024}, 4096),
        (4096, YARN | {"original_max_position_embeddings": 4096}, 16384),
        (4096, YARN | {"original_max_position_embeddings": 2048}, 8192),
        (4096, YARN, 16384),
        (4096, YARN | {"factor": 1.5, "original_max_position_embeddings": 3000}, 4500),
        (4096, {"rope_type": "dynamic", "factor": 4.0}, 4096),
        (4096, {"rope_type": "default"}, 4096),
        (
            131072,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            131072,
        ),
    ],
)
def test_scaling_stretches_a_context_that_was_left_as_it_was_trained(context: int, scaling: dict[str, Any], expected: int) -> None:
    values = SIZES | {"model_type": "llama", "max_position_embeddings": context}
    for name in ("rope_scaling", "rope_parameters"):
        assert read(values | {name: scaling}).max_context == expected
        assert read(values | {name: scaling | {"finetuned": True}}) == read(values | {name: scaling})


@pytest.mark.parametrize("place", ["top", "rope_parameters"])
def test_a_part_of_each_head_rotates(place: str) -> None:
    part = {"partial_rotary_factor": 0.5}
    values = SIZES | {"model_type": "stablelm"}
    spec = read(values | part if place == "top" else values | {"rope_parameters": {"rope_type": "default"} | part})
    assert {layer.mixer.rope.width for layer in spec.layers if layer.mixer.rope is not None} == {12}


@pytest.mark.parametrize("place", ["top", "rope_parameters"])
def test_all_of_each_head_rotates_where_transformers_reads_no_part(place: str) -> None:
    def values(factor: float) -> dict[str, Any]:
        part = {"partial_rotary_factor": factor}
        return SIZES | {"model_type": "llama"} | (part if place == "top" else {"rope_parameters": {"rope_type": "default"} | part})

    assert read(values(1.0)) == read(SIZES | {"model_type": "llama"})
    with pytest.raises(UnsupportedModelError, match=r"partial_rotary_factor = 0\.5 is not known of models of type 'llama'") as caught:
        read(values(0.5))
    assert caught.value.hint


def test_a_part_of_each_head_rotates_in_the_families_whose_transformers_class_reads_it() -> None:
    for model_type, entry in HF.items():
        if model_type not in CONFIG_MAPPING:
            continue
        config = Path(inspect.getfile(CONFIG_MAPPING[model_type]))
        modeling = config.with_name(config.name.replace("configuration_", "modeling_"))
        if modeling.exists():
            assert ("partial_rotary_factor" in modeling.read_text()) == ("partial_rotary_factor" in entry.defaults), model_type


class TestUnknownSettings:
    LLAMA: dict[str, Any] = SIZES | {"model_type": "llama"}

    @pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
    def test_one_that_says_nothing_is_passed_over(self, value: object) -> None:
        assert read(self.LLAMA | {"soft_prompts": value}) == read(self.LLAMA)

    @pytest.mark.parametrize("value", [True, 1, 0.5, "on", [0], {"a": None}])
    def test_one_that_says_something_is_named_with_its_value(self, value: object) -> None:
        with pytest.raises(UnsupportedModelError, match="soft_prompts = ") as caught:
            read(self.LLAMA | {"soft_prompts": value})
        assert repr(value) in caught.value.message
        assert caught.value.hint == "if it changes nothing, say so: --ignore-config soft_prompts"

    def test_how_text_is_chosen_and_where_the_file_came_from_change_nothing(self) -> None:
        """As transformers once wrote them into config.json, and as it reads them from GGUF files."""
        notes = {
            "temperature": 0.7,
            "max_length": 20,
            "unk_token_id": 3,
            "_model_name_or_path": "A Llama",
            "_attn_implementation_autoset": True,
        }
        assert spec_from_hf(self.LLAMA | notes) == spec_from_hf(self.LLAMA)

    def test_the_user_may_say_that_it_changes_nothing(self) -> None:
        spec, _ = spec_from_hf(self.LLAMA | {"soft_prompts": 3, "others": True}, ignored=["soft_prompts", "others"])
        assert spec == read(self.LLAMA)
        with pytest.raises(UnsupportedModelError, match="others = True"):
            spec_from_hf(self.LLAMA | {"soft_prompts": 3, "others": True}, ignored=["soft_prompts"])

    def test_what_is_of_training_or_of_other_software_is_passed_over(self) -> None:
        harmless = {"attention_dropout": 0.1, "hidden_dropout_prob": 0.1, "embd_pdrop": 0.1, "transformers_version": "4.40.0"}
        harmless |= {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, "bos_token_id": 1, "auto_map": {"a": "b"}}
        assert read(self.LLAMA | harmless) == read(self.LLAMA)

    def test_a_factor_of_one_says_nothing(self) -> None:
        assert read(self.LLAMA | {"residual_multiplier": 1.0}) == read(self.LLAMA)

    def test_one_of_the_rotary_embedding(self) -> None:
        with pytest.raises(UnsupportedModelError, match="'linear' with wobble is not supported") as caught:
            read(self.LLAMA | {"rope_parameters": LINEAR | {"wobble": 2.0}})
        assert caught.value.hint


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "reformer"}, "reformer"),
        ({"model_type": None}, "None"),
        ({"model_type": ["llama"]}, "llama"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "llama4", "rope_theta": 10000.0}}, "llama4"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer type"),
        ({"sliding_window": 128}, "sliding windows"),
        ({"layer_types": ["sliding_attention"] * 6}, "sliding windows"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "attention_bias": True}, "attention_bias"),
        ({"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention"] * 6}, "layer_types"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 6}, "chunked_attention"),
        ({"per_layer_config": {"0": {"hidden_size": 3}}}, "per_layer_config"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"residual_multiplier": 0.5}, "residual_multiplier"),
    ],
)
def test_refuses_what_the_decoder_does_not_compute(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        read(SIZES | {"model_type": "llama"} | values)
    assert caught.value.hint


def test_an_unknown_architecture_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read({"model_type": "mamba"})
    assert caught.value.hint is not None
    assert all(architecture in caught.value.hint for architecture in ARCHITECTURES)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "96"}, "hidden_size"),
        ({"hidden_size": -96, "head_dim": 24}, "hidden_size"),
        ({"hidden_size": 2**25}, "at most"),
        ({"intermediate_size": 0}, "intermediate_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"head_dim": 7}, "7 elements of each head; it must be an even"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 0}, "layers"),
        ({"num_hidden_layers": 5000}, "at most 4096"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_theta": 0.5}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "factor"),
        ({"rope_scaling": "linear"}, "rope_parameters"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "long_factor"),
        ({"model_type": "stablelm", "partial_rotary_factor": 0.0}, "0 elements of each head"),
        ({"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["sliding_attention"] * 6}, "no sliding window"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ({"model_type": "granite_swa", "layer_rope_theta": [0]}, "layer_rope_theta"),
    ],
)
def test_settings_that_cannot_be_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        read(SIZES | {"model_type": "llama"} | values)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["llama-3.1", "mistral-0.1", "qwen2-yarn", "smollm3", "granite", "granite_swa"])
def test_strange_values_make_a_model_or_an_error_of_ours(name: str) -> None:
    """Each setting in turn, those of the rotary embedding too; what is read must be finite, as keys in the store must be."""
    values = transformers.AutoConfig.for_model(**SIZES | IN_THE_WILD[name]).to_dict()
    rope = values["rope_parameters"] | {"partial_rotary_factor": 1.0, "original_max_position_embeddings": 64, "factor": 2.0}
    places = [("", key) for key in values] + [("rope_parameters", key) for key in rope]
    for place, key in places:
        for value in STRANGE:
            changed = values | {place: rope | {key: value}} if place else values | {key: value}
            try:
                flatten(read(changed))
            except EngineError:
                continue
            except Exception as error:
                raise AssertionError(f"{place}{'.' if place else ''}{key} = {value!r}") from error


class TestExperts:
    """Settings of mixtures of experts that contradict themselves or say what is not computed, and two ways to say one thing."""

    QWEN = SIZES | {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
    }
    GLM = SIZES | {
        "model_type": "glm4_moe",
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
    }
    MINIMAX = SIZES | {
        "model_type": "minimax_m2",
        "head_dim": 24,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
    }

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            (QWEN | {"num_experts_per_tok": 9}, "9 of 8 experts are to be chosen"),
            (QWEN | {"num_experts_per_tok": 0}, "0 of 8 experts are to be chosen"),
            (GLM | {"n_group": 3, "topk_group": 1}, "8 experts in 3 groups of which 1 are kept"),
            (GLM | {"n_group": 4, "topk_group": 5}, "8 experts in 4 groups of which 5 are kept"),
            (GLM | {"n_group": 8, "topk_group": 2}, "8 experts in 8 groups"),
            (GLM | {"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "3 experts are to be chosen in 1 of 4 groups"),
            (GLM | {"mlp_layer_types": ["dense"]}, "mlp_layer_types has 1 entries"),
        ],
    )
    def test_numbers_that_cannot_be_are_refused(self, values: dict[str, Any], named: str) -> None:
        with pytest.raises(CheckpointError, match=named) as caught:
            read(values)
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            (GLM | {"scoring_func": "softmax"}, "score by 'softmax'"),
            (GLM | {"mlp_layer_types": ["dense"] * 5 + ["mamba"]}, "channels of type 'mamba'"),
            (MINIMAX | {"attn_type_list": [1, 0]}, "layers without attention"),
            (MINIMAX | {"shared_intermediate_size": 64}, "shared_intermediate_size = 64"),
            (SIZES | {"model_type": "gpt_oss", "head_dim": 16, "swiglu_alpha": 1.5}, "swiglu_alpha = 1.5"),
        ],
    )
    def test_what_is_not_computed_is_refused(self, values: dict[str, Any], named: str) -> None:
        with pytest.raises(UnsupportedModelError, match=named) as caught:
            read(values)
        assert caught.value.hint

    def test_a_part_of_a_head_rotates_by_either_setting(self) -> None:
        part = read(self.MINIMAX | {"rotary_dim": 12})
        assert part == read(self.MINIMAX | {"partial_rotary_factor": 0.5}) != read(self.MINIMAX)
        assert part.layers[0].mixer.rope is not None
        assert part.layers[0].mixer.rope.width == 12
