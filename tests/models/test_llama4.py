"""Llama 4's settings: which layers rotate, see a chunk, or have experts."""

from pathlib import Path
from typing import Any

import pytest
from families import tiny_config, write_tiny_checkpoint
from gguf_files import write_gguf

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.architectures.registry import spec_from_hf
from engine.models.open import open_checkpoint
from engine.models.parts.attention import AttentionSpec, TemperatureSpec
from engine.models.parts.moe import MoESpec
from engine.models.spec import ModelSpec

SIZES: dict[str, Any] = {
    "model_type": "llama4_text",
    "hidden_size": 96,
    "intermediate_size": 64,
    "intermediate_size_mlp": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 4,
    "vocab_size": 300,
}


def read(**changes: Any) -> ModelSpec:
    return spec_from_hf(SIZES | changes)[0]


def attentions(spec: ModelSpec) -> list[AttentionSpec]:
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]


def with_experts(spec: ModelSpec) -> list[int]:
    return [index for index, layer in enumerate(spec.layers) if isinstance(layer.channel, MoESpec)]


def test_every_fourth_layer_sees_everything_without_positions() -> None:
    mixers = attentions(read())
    assert [mixer.rope is None for mixer in mixers] == [False, False, False, True] * 2
    assert [mixer.chunk for mixer in mixers] == [8192, 8192, 8192, 0] * 2
    assert [mixer.qk_norm is None for mixer in mixers] == [False, False, False, True] * 2
    growth = TemperatureSpec(beta=0.1, length=8192, offset=1)
    assert [mixer.temperature for mixer in mixers] == [None, None, None, growth] * 2


def test_what_the_configuration_leaves_out_is_not_there() -> None:
    mixers = attentions(read(use_qk_norm=False, attn_temperature_tuning=False, attention_chunk_size=None, no_rope_layers=[1] * 8))
    assert all(mixer.qk_norm is None and mixer.temperature is None and not mixer.chunk and mixer.rope is not None for mixer in mixers)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, list(range(8))),
        ({"interleave_moe_layer_step": 2}, [1, 3, 5, 7]),
        ({"interleave_moe_layer_step": 3, "moe_layers": [0, 7]}, [0, 7]),
        ({"moe_layers": []}, []),
    ],
    ids=str,
)
def test_which_layers_have_experts(changes: dict[str, Any], layers: list[int]) -> None:
    spec = read(**changes)
    assert with_experts(spec) == layers
    assert {layer.channel.size for layer in spec.layers} == {64 if index in layers else 160 for index in range(8)}


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"layer_types": ["sliding_attention"] * 8}, UnsupportedModelError, "sliding_attention"),
        ({"layer_types": ["chunked_attention"] * 8, "attention_chunk_size": None}, CheckpointError, "no attention_chunk_size"),
        ({"layer_types": ["full_attention"]}, CheckpointError, "1 entries for 8 layers"),
        ({"no_rope_layers": [1, 0]}, CheckpointError, "no_rope_layers"),
        ({"moe_layers": [9]}, CheckpointError, "moe_layers"),
        ({"num_experts_per_tok": 5}, CheckpointError, "5 of 4 experts"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(changes: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        read(**changes)


def test_a_file_without_chunks_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint("llama4_text", tmp_path / "model", layer_types=None)
    with pytest.raises(UnsupportedModelError, match="without chunks"):
        open_checkpoint(str(write_gguf(directory, tmp_path / "model.gguf", metadata={"llama4.attention.sliding_window": 0})))


def test_the_configuration_of_transformers_is_read_as_it_is_written() -> None:
    config = tiny_config("llama4_text", moe_layers=None, layer_types=None)
    spec = spec_from_hf(config.to_dict())[0]
    assert with_experts(spec) == config.moe_layers
    assert [bool(mixer.chunk) for mixer in attentions(spec)] == [each == "chunked_attention" for each in config.layer_types]
