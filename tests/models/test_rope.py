"""Rotary frequencies, bit for bit those of `transformers`."""

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.models.config import RopeConfig
from engine.models.hf_config import config_from_hf
from engine.models.rope import inverse_frequencies

PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "smollm3": {"rope_type": "default", "rope_theta": 2000000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    "llama-3.1": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama-3.2": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn-everything": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "truncate": False,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 0.75,
    },
}


@pytest.mark.parametrize("head_dim", [10, 64, 128])
@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies_are_bitwise_those_of_transformers(name: str, head_dim: int) -> None:
    values = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "max_position_embeddings": 131072, "rope_parameters": PARAMETERS[name]}
    theirs = transformers.LlamaConfig(**values)
    function = ROPE_INIT_FUNCTIONS.get(PARAMETERS[name]["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    expected, attention_factor = function(theirs)
    ours = config_from_hf(theirs.to_dict())
    assert torch.equal(inverse_frequencies(ours.rope, head_dim), expected)
    assert ours.rope.attention_factor == attention_factor


@given(
    head_dim=st.integers(2, 128).map(lambda half: 2 * half),
    theta=st.floats(100, 1e7),
    factor=st.floats(1, 64),
    original=st.integers(256, 131072),
)
def test_divisors_undo_exactly_what_they_were_made_from(head_dim: int, theta: float, factor: float, original: int) -> None:
    """GGUF states llama3 scaling as the quotient of the plain frequencies and the scaled ones."""
    plain = inverse_frequencies(RopeConfig(theta=theta), head_dim)
    scaled = inverse_frequencies(
        RopeConfig(theta=theta, kind="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=original),
        head_dim,
    )
    divisors = tuple((plain / scaled).tolist())
    actual = inverse_frequencies(RopeConfig(theta=theta, kind="divisors", divisors=divisors), head_dim)
    # Two roundings, each of half a unit in the last place.
    assert torch.allclose(actual, scaled, rtol=2 * 2**-23, atol=0)


def test_llama3_scaling_leaves_short_wavelengths_and_divides_long_ones() -> None:
    rope = RopeConfig(theta=500000.0, kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=8192)
    plain, scaled = inverse_frequencies(RopeConfig(theta=500000.0), 128), inverse_frequencies(rope, 128)
    wavelengths = 2 * math.pi / plain
    assert torch.equal(scaled[wavelengths < 2048], plain[wavelengths < 2048])
    assert torch.equal(scaled[wavelengths > 8192], plain[wavelengths > 8192] / 8)
    between = (wavelengths > 2048) & (wavelengths < 8192)
    assert between.any()
    assert torch.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8))
