"""Models whose layers differ in their heads, and whose values are narrower than keys."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_config, write_tiny_checkpoint
from loading import load_decoder
from paged_runner import PagedRunner
from reference_attention import use_reference_attention

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.architectures.registry import spec_from_hf
from engine.models.open import open_checkpoint
from engine.models.parts.attention import AttentionSpec, GateSpec
from engine.models.parts.moe import MoESpec
from engine.models.spec import ModelSpec

# As the hub has it, in the words of the model's own code.
MIMO: dict[str, Any] = {
    "model_type": "mimo_v2_flash",
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "head_dim": 32,
    "swa_head_dim": 32,
    "v_head_dim": 24,
    "swa_v_head_dim": 24,
    "n_routed_experts": 4,
    "n_shared_experts": None,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": None,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "layernorm_epsilon": 1e-5,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "attention_chunk_size": 8,
    "hybrid_block_size": None,
    "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, 1],
    "moe_layer_freq": [0, 1, 1, 1, 1, 1, 1],
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "rope_theta": 5000000,
    "swa_rope_theta": 10000,
    "partial_rotary_factor": 0.334,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}


LAGUNA: dict[str, Any] = {
    "model_type": "laguna",
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_attention_heads_per_layer": [4, 6, 6, 4],
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "head_dim": 32,
    "sliding_window": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 300,
}


def read(values: dict[str, Any], **changes: Any) -> ModelSpec:
    return spec_from_hf(values | changes)[0]


def test_the_words_of_the_hub_say_what_those_of_transformers_say() -> None:
    sizes = {name: MIMO[name] for name in ("num_hidden_layers", "num_key_value_heads", "vocab_size", "n_routed_experts")}
    config = tiny_config("mimo_v2_flash", n_group=1, sliding_window=9, layer_types=None, mlp_layer_types=None, rope_theta=1e4, **sizes)
    spec = read(MIMO)
    assert spec == read(config.to_dict())
    mixers = [layer.mixer for layer in spec.layers]
    assert [(mixer.window, mixer.num_kv_heads, mixer.sinks) for mixer in mixers if isinstance(mixer, AttentionSpec)] == [
        (0, 1, False) if index in (0, 5) else (9, 2, True) for index in range(7)
    ]
    assert [isinstance(layer.channel, MoESpec) for layer in spec.layers] == [False, *[True] * 6]


def test_layers_have_the_heads_the_table_and_the_gate_that_are_theirs() -> None:
    mixers = [layer.mixer for layer in read(LAGUNA).layers if isinstance(layer.mixer, AttentionSpec)]
    assert [mixer.num_heads for mixer in mixers] == [4, 6, 6, 4]
    tables = [(mixer.rope.theta, mixer.rope.width) for mixer in mixers if mixer.rope is not None]
    assert tables == [(500000.0, 16), (10000.0, 32), (10000.0, 32), (500000.0, 16)]
    assert {mixer.gate for mixer in mixers} == {GateSpec(function="softplus", by_head=True)}
    elements = read(LAGUNA, gating="per-element", gating_types=["per_element"] * 4)
    assert {layer.mixer.gate for layer in elements.layers if isinstance(layer.mixer, AttentionSpec)} == {GateSpec(function="softplus")}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gating": False}, "False"),
        ({"gating_types": ["per_head", "per_element", "per_head", "per_head"]}, "per-element, per-head"),
        ({"moe_apply_router_weight_on_input": True}, "moe_apply_router_weight_on_input"),
    ],
    ids=str,
)
def test_what_laguna_does_not_have_here_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read(LAGUNA, **changes)


def test_heads_that_are_not_given_for_each_layer_are_named() -> None:
    with pytest.raises(CheckpointError, match="num_attention_heads_per_layer"):
        read(LAGUNA, num_attention_heads_per_layer=[4, 6])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"swa_head_dim": 16}, "swa_head_dim"),
        ({"swa_v_head_dim": 32}, "swa_v_head_dim"),
        ({"scoring_func": "softmax"}, "softmax"),
        ({"v_head_dim": 40, "swa_v_head_dim": 40}, "values of 40 elements and keys of 32"),
    ],
    ids=str,
)
def test_what_would_change_the_maths_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read(MIMO, **changes)


@pytest.mark.parametrize("changes", [{"hybrid_layer_pattern": [0, 1]}, {"moe_layer_freq": [2] * 7}], ids=str)
def test_lists_that_do_not_fit_the_layers_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        read(MIMO, **changes)


def test_the_caches_hold_zeros_behind_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)
    checkpoint = open_checkpoint(str(write_tiny_checkpoint("mimo_v2_flash", tmp_path / "model")))
    runner = PagedRunner(load_decoder(checkpoint))
    runner.step([(0, list(range(3, 20)))])
    for _, values in runner.caches:
        written = values[~values.isnan()].view(-1, 32)
        assert len(written) > 0
        assert bool((written[:, 24:] == 0).all())
        assert bool((written[:, :24] != 0).all())


def test_a_multiplier_of_the_result_is_one_of_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)
    checkpoint = open_checkpoint(str(write_tiny_checkpoint("mimo_v2_flash", tmp_path / "model")))
    decoder = load_decoder(checkpoint)
    expected = PagedRunner(decoder).step([(0, [5, 6, 7, 8])])
    for layer in decoder.layers:
        mixer: Any = layer.attention
        with torch.no_grad():
            mixer.v.weight.mul_(mixer.spec.multiplier)
        mixer.spec = replace(mixer.spec, multiplier=1.0)
    torch.testing.assert_close(PagedRunner(decoder).step([(0, [5, 6, 7, 8])]), expected, rtol=1e-4, atol=1e-5)
