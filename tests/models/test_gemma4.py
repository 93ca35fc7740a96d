"""Gemma 4's settings: what they make of each layer, and what is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from families import tiny_config
from gguf_files import write_gguf
from gguf_twins import write_twins
from safetensors.torch import load_file, save_file
from strange_settings import STRANGE

from engine.errors import CheckpointError, EngineError, UnsupportedModelError
from engine.models.architectures.registry import spec_from_hf
from engine.models.cache_groups import cache_groups, group_of_layers
from engine.models.open import open_checkpoint
from engine.models.parts.attention import AttentionSpec
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.moe import MoESpec
from engine.models.spec import LayerSpec, ModelSpec

SLIDING, FULL = "sliding_attention", "full_attention"
# As the 31B, the 26B-A4B and the E2B are, made small.
DENSE: dict[str, Any] = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 6,
    "hidden_size": 96,
    "intermediate_size": 160,
    "vocab_size": 300,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 16,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": "vision",
}
EXPERTS: dict[str, Any] = DENSE | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64}
SMALL: dict[str, Any] = DENSE | {
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 300,
    "layer_types": [SLIDING, FULL] * 3,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}


def read(values: dict[str, Any]) -> ModelSpec:
    return spec_from_hf(values)[0]


def attention(layer: LayerSpec) -> AttentionSpec:
    assert isinstance(layer.mixer, AttentionSpec)
    return layer.mixer


def sizes(spec: ModelSpec) -> list[tuple[int, int, int]]:
    """Head size, heads of keys and values, and window of every layer."""
    return [(layer.mixer.head_dim, layer.mixer.num_kv_heads, layer.mixer.window) for layer in spec.layers]


def test_layers_without_a_window_have_heads_of_their_own() -> None:
    spec = read(DENSE)
    assert sizes(spec) == [(32, 2, 16)] * 5 + [(64, 1, 0)]
    assert [attention(layer).values_are_keys for layer in spec.layers] == [False] * 5 + [True]
    assert [(group.kind, group.head_dim, group.num_kv_heads) for group in cache_groups(spec)] == [("window", 32, 2), ("full", 64, 1)]
    tables = [layer.mixer.rope for layer in spec.layers]
    assert [(table.width, table.still, table.theta) for table in tables if table] == [(32, 0, 1e4)] * 5 + [(64, 24, 1e6)]
    assert spec.layer_inputs is None


def test_heads_of_layers_without_a_window_are_as_many_as_the_others_where_values_are_no_keys() -> None:
    assert sizes(read(DENSE | {"attention_k_eq_v": False}))[-1] == (64, 2, 0)


@pytest.mark.parametrize("values", [DENSE, EXPERTS, SMALL], ids=["dense", "experts", "layer inputs"])
def test_what_transformers_writes_says_the_same(values: dict[str, Any]) -> None:
    """It writes the sizes of single layers, and tables that were left out."""
    assert read(transformers.AutoConfig.for_model(**values).to_dict()) == read(values)


def test_the_last_layer_has_no_window_whatever_is_said() -> None:
    assert sizes(read(DENSE | {"layer_types": [SLIDING] * 6})) == sizes(read(DENSE))


def test_experts_stand_beside_a_dense_channel() -> None:
    for layer in read(EXPERTS).layers:
        channel = layer.channel
        assert isinstance(channel, MoESpec)
        assert (channel.shared, channel.experts.size, channel.router.chosen) == (MLPSpec(size=160, activation="gelu_tanh"), 64, 2)
        assert (layer.norms.before_channel, layer.norms.after_channel) == (None, layer.norms.after_mixer)


def test_the_last_layers_read_keys_and_values_of_the_last_of_their_kind() -> None:
    spec = read(SMALL)
    assert [layer.mixer.source for layer in spec.layers] == [None, None, None, 1, 2, 1]
    assert group_of_layers(spec) == ["window", "full", "window", "full", "window", "full"]
    assert [layer.channel.size for layer in spec.layers] == [160] * 3 + [320] * 3
    assert spec.layer_inputs is not None


def test_a_layer_reads_keys_and_values_of_its_own_shape() -> None:
    spec = read(SMALL)
    for source in (4, 5, 0, -1):
        last = replace(spec.layers[-1], mixer=replace(attention(spec.layers[-1]), source=source))
        with pytest.raises(CheckpointError, match=f"layer 5 of the model reads keys and values of layer {source}"):
            replace(spec, layers=(*spec.layers[:-1], last))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"use_bidirectional_attention": "all"}, UnsupportedModelError, "use_bidirectional_attention = 'all'"),
        ({"vocab_size_per_layer_input": 200}, UnsupportedModelError, "vocab_size_per_layer_input = 200, and vocab_size = 300"),
        ({"per_layer_config": {"1": {"intermediate_size": 3}}}, UnsupportedModelError, "per_layer_config.1: intermediate_size"),
        ({"per_layer_config": [1]}, CheckpointError, "per_layer_config"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, UnsupportedModelError, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, CheckpointError, "no table for layers of type"),
        ({"attn_logit_softcapping": 50.0}, UnsupportedModelError, "attn_logit_softcapping"),
        ({"sliding_window": None}, CheckpointError, "no sliding window is in use"),
        ({"sliding_window": None, "layer_types": None}, CheckpointError, "sliding_window is 0"),
        ({"num_kv_shared_layers": 5}, CheckpointError, "5 of 6 layers"),
        ({"num_kv_shared_layers": 6}, CheckpointError, "6 of 6 layers"),
        ({"enable_moe_block": True, "num_experts": 2, "top_k_experts": 3, "moe_intermediate_size": 64}, CheckpointError, "3 of 2 experts"),
        ({"model_type": "gemma4_unified_text"}, UnsupportedModelError, "hidden_size_per_layer_input"),
        ({"model_type": "gemma4_unified_text", "hidden_size_per_layer_input": 0, "enable_moe_block": True}, UnsupportedModelError, "moe"),
    ],
)
def test_what_cannot_be_computed_is_named(changes: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        read(SMALL | changes)
    assert isinstance(caught.value, EngineError)
    assert caught.value.hint


@pytest.mark.parametrize("key", [*(EXPERTS | SMALL), "rope_parameters", "per_layer_config", "attention_bias"])
def test_strange_values_make_a_model_or_an_error_of_ours(key: str) -> None:
    for value in (*STRANGE, {"full_attention": 3}, {"0": {"head_dim": -2}}, {"0": 1}):
        for values in (EXPERTS, SMALL):
            try:
                read(values | {key: value})
            except EngineError:
                continue


def test_matrices_that_layers_without_keys_and_values_carry_are_not_read(tmp_path: Path) -> None:
    checkpoint, _ = write_twins("gemma4-layer-inputs", tmp_path)
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    own, unread = ("model.layers.0.self_attn.k_proj.weight", "model.layers.2.self_attn.k_proj.weight")
    save_file(weights | {unread: weights[own].clone()}, file, metadata={"format": "pt"})
    found = open_checkpoint(str(checkpoint))
    assert unread not in {name for parameter in found.parameters for name in found.tensors_of(parameter)}
    del weights[own]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"missing: {own}"):
        open_checkpoint(str(checkpoint))


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"attention.sliding_window_pattern": [True] * 4}, "the last layer has a window"),
        ({"feed_forward_length": [160, 160, 160, 320]}, r"feed_forward_length is \[160, 160, 160, 320\]"),
        ({"feed_forward_length": [160]}, "feed_forward_length has 1 entries for 4 layers"),
        ({"attention.value_length_swa": 16}, "attention.value_length_swa is 16, and keys have 32"),
        ({"rope.dimension_count": 16}, "rope.dimension_count is 16, and keys have 48"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, "together with rope_freqs.weight"),
    ],
)
def test_files_that_say_what_the_architecture_does_not_have_are_refused(metadata: dict[str, Any], named: str, tmp_path: Path) -> None:
    checkpoint, _ = write_twins("gemma4_text", tmp_path)
    file = write_gguf(checkpoint, tmp_path / "changed.gguf", metadata={f"gemma4.{key}": value for key, value in metadata.items()})
    with pytest.raises(EngineError, match=named) as caught:
        open_checkpoint(str(file))
    assert caught.value.hint


def test_a_file_without_experts_may_count_them(tmp_path: Path) -> None:
    """As those of configurations that have a number, and no experts."""
    assert tiny_config("gemma4_text").num_experts == 4
    checkpoint, file = write_twins("gemma4_text", tmp_path)
    assert json.loads((checkpoint / "config.json").read_text())["enable_moe_block"] is False
    assert open_checkpoint(str(file)).spec == open_checkpoint(str(checkpoint)).spec
