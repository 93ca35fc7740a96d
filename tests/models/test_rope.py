"""Rotary frequencies, bit for bit those of `transformers`."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.errors import CheckpointError
from engine.models.architectures.registry import spec_from_hf
from engine.models.parts.rope import Rope, RopeSpec, inverse_frequencies, rotate

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
SIZES = {"intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 300}


def table(values: dict[str, Any]) -> RopeSpec:
    """The table of a configuration's first layer."""
    rope = spec_from_hf(values)[0].layers[0].mixer.rope
    assert rope is not None
    return rope


@pytest.mark.parametrize("head_dim", [10, 64, 128])
@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies_are_bitwise_those_of_transformers(name: str, head_dim: int) -> None:
    values = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "max_position_embeddings": 131072, "rope_parameters": PARAMETERS[name]}
    theirs = transformers.LlamaConfig(**values)
    function = ROPE_INIT_FUNCTIONS.get(PARAMETERS[name]["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    expected, attention_factor = function(theirs)
    ours = table(theirs.to_dict())
    assert torch.equal(inverse_frequencies(ours), expected)
    assert ours.attention_factor == attention_factor


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["default", "linear", "yarn"])
def test_a_part_of_each_head(name: str, factor: float) -> None:
    """The frequencies are those of heads as wide as the part that rotates."""
    theirs = transformers.GlmConfig(
        **SIZES,
        hidden_size=256,
        num_attention_heads=4,
        head_dim=64,
        num_key_value_heads=4,
        rope_parameters=PARAMETERS[name] | {"partial_rotary_factor": factor},
    )
    function = ROPE_INIT_FUNCTIONS.get(PARAMETERS[name]["rope_type"], GlmRotaryEmbedding.compute_default_rope_parameters)
    expected, _ = function(theirs)
    ours = table(theirs.to_dict())
    assert ours.width == 64 * factor
    assert torch.equal(inverse_frequencies(ours), expected)


@pytest.mark.parametrize(("part", "factor"), [(0.25, 1.0), (0.3, 2.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_part_of_the_frequencies_of_a_whole_head(part: float, factor: float) -> None:
    parameters = {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": part, "factor": factor}
    theirs = transformers.LlamaConfig(**SIZES, hidden_size=256, num_attention_heads=4, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["proportional"](theirs)
    ours = table(theirs.to_dict())
    assert (ours.width, ours.still) == (64, 32 - int(part * 64 // 2))
    assert torch.equal(inverse_frequencies(ours), expected)


class TestLongRope:
    SHORT: ClassVar = [1.0 + 0.25 * index for index in range(8)]
    LONG: ClassVar = [1.5 + 2.0 * index for index in range(8)]
    VALUES: ClassVar[dict[str, Any]] = SIZES | {
        "model_type": "phi3",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 256,
        "pad_token_id": None,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG},
    }

    @pytest.mark.parametrize("context", [1, 256, 257, 4096])
    def test_both_tables_are_those_of_transformers(self, context: int) -> None:
        expected, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](transformers.Phi3Config(**self.VALUES), seq_len=context)
        ours = table(self.VALUES).for_context(context)
        assert torch.equal(inverse_frequencies(ours), expected)
        assert ours.divisors == tuple(self.SHORT if context <= 256 else self.LONG)
        assert ours.attention_factor == attention_factor

    def test_the_older_spelling(self) -> None:
        scaling = {"type": "su", "short_factor": self.SHORT, "long_factor": self.LONG}
        older = {name: value for name, value in self.VALUES.items() if name != "rope_parameters"} | {"rope_scaling": scaling}
        assert table(older) == table(self.VALUES)

    def test_a_context_is_a_choice_of_the_whole_model(self) -> None:
        spec, _ = spec_from_hf(self.VALUES)
        for context, divisors in ((256, self.SHORT), (257, self.LONG)):
            limited = spec.for_context(context)
            assert limited.max_context == 4096  # what the model was made for
            rope = limited.layers[0].mixer.rope
            assert rope is not None
            assert rope.divisors == tuple(divisors)

    def test_other_tables_are_the_same_for_every_context(self) -> None:
        plain = RopeSpec(theta=10000.0, width=16)
        assert plain.for_context(1) is plain

    @pytest.mark.parametrize("name", ["short_factor", "long_factor"])
    def test_a_divisor_for_every_pair(self, name: str) -> None:
        wrong = self.VALUES | {"rope_parameters": self.VALUES["rope_parameters"] | {name: [1.0] * 7}}
        with pytest.raises(CheckpointError, match="7 rotary frequency divisors for 16 rotated elements; 8 are needed") as caught:
            table(wrong)
        assert caught.value.hint


def test_dynamic_scaling_begins_where_the_context_ends() -> None:
    values = SIZES | {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 2048}
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    theirs = transformers.LlamaConfig(**values, rope_parameters=dynamic)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["dynamic"](theirs, seq_len=2048)
    ours = table(theirs.to_dict())
    assert torch.equal(inverse_frequencies(ours), expected)
    assert ours.attention_factor == attention_factor


def test_dynamic_scaling_with_alpha_is_another_base() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    theirs = transformers.HunYuanDenseV1Config(
        **SIZES, hidden_size=256, num_attention_heads=4, num_key_value_heads=4, head_dim=64, rope_parameters=rope
    )
    expected = HunYuanDenseV1RotaryEmbedding(theirs).inv_freq
    ours = table(theirs.to_dict())
    assert ours.theta == float(torch.tensor(10000.0 * 1000.0 ** (64 / 62)))
    assert torch.equal(inverse_frequencies(ours), expected)


@pytest.mark.parametrize(("context", "stretch"), [(32768, 4), (8192, 1)])
def test_telechat3_stretches_by_the_ratio_of_its_contexts(context: int, stretch: int) -> None:
    """As its own code: the factor that is given does not count, and cos and sin grow by 0.07 ln(stretch) + 1."""
    values = SIZES | {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": context}
    scaling = {"factor": 3.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0}
    ours = table(values | {"model_type": "telechat3", "rope_scaling": scaling | {"type": "telechat3-yarn", "mscale_all_dim": 1.0}})
    yarn = {name: value for name, value in scaling.items() if name != "mscale"} | {"rope_type": "yarn", "factor": float(stretch)}
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](transformers.LlamaConfig(**values, rope_parameters=yarn | {"rope_theta": 10000.0}))
    assert torch.equal(inverse_frequencies(ours), expected)
    assert ours.attention_factor == 0.07 * math.log(stretch) + 1.0


def test_sections_of_images_rotate_alike_for_text() -> None:
    values = SIZES | {"model_type": "qwen2", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    plain = {"rope_type": "default", "rope_theta": 1000000.0}
    assert table(values | {"rope_parameters": plain | {"mrope_section": [8, 12, 12]}}) == table(values | {"rope_parameters": plain})


@given(
    width=st.integers(2, 128).map(lambda half: 2 * half),
    theta=st.floats(100, 1e7),
    factor=st.floats(1, 64),
    original=st.integers(256, 131072),
)
def test_divisors_undo_exactly_what_they_were_made_from(width: int, theta: float, factor: float, original: int) -> None:
    """GGUF states llama3 scaling as the quotient of the plain frequencies and the scaled ones."""
    rope = RopeSpec(theta=theta, width=width)
    llama3 = replace(rope, kind="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=original)
    plain, scaled = inverse_frequencies(rope), inverse_frequencies(llama3)
    actual = inverse_frequencies(replace(rope, kind="divisors", divisors=tuple((plain / scaled).tolist())))
    # Two roundings, each of half a unit in the last place.
    assert torch.allclose(actual, scaled, rtol=2 * 2**-23, atol=0)


def test_llama3_scaling_leaves_short_wavelengths_and_divides_long_ones() -> None:
    rope = RopeSpec(theta=500000.0, width=128)
    llama3 = replace(rope, kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=8192)
    plain, scaled = inverse_frequencies(rope), inverse_frequencies(llama3)
    wavelengths = 2 * math.pi / plain
    assert torch.equal(scaled[wavelengths < 2048], plain[wavelengths < 2048])
    assert torch.equal(scaled[wavelengths > 8192], plain[wavelengths > 8192] / 8)
    between = (wavelengths > 2048) & (wavelengths < 8192)
    assert between.any()
    assert torch.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8))


def test_the_elements_behind_the_width_pass() -> None:
    """And those before it are rotated in pairs (i, i + width / 2): here by a quarter turn, and by none."""
    x = torch.arange(1.0, 7.0).view(1, 1, 6)
    cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert rotate(x, cos, sin).tolist() == [[[-3.0, 2.0, 1.0, 4.0, 5.0, 6.0]]]
    assert rotate(x[..., :4], cos, sin).tolist() == [[[-3.0, 2.0, 1.0, 4.0]]]


def test_angles_carry_the_attention_factor() -> None:
    spec = RopeSpec(theta=10000.0, width=8)
    positions = torch.tensor([0, 1, 130], dtype=torch.int32)
    plain, scaled = Rope(spec)(positions), Rope(replace(spec, attention_factor=1.5))(positions)
    for theirs, ours in zip(plain, scaled, strict=True):
        assert ours.shape == (3, 4)
        assert torch.equal(ours, 1.5 * theirs)
    assert torch.equal(plain[0], (positions[:, None] * inverse_frequencies(spec)).cos())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"width": 7}, "even"),
        ({"width": 0}, "even"),
        ({"theta": 1.0}, "rope_theta"),
        ({"kind": "linear", "factor": 0.0}, "factor"),
        ({"kind": "yarn"}, "original context of 0"),
        ({"kind": "yarn", "original_max_context": 8, "beta_fast": 1.0}, "beta_fast"),
        ({"kind": "llama3", "original_max_context": 8, "low_freq_factor": 4.0}, "low_freq_factor"),
        ({"kind": "divisors", "divisors": (1.0,)}, "divisors"),
        ({"still": 5}, "5 of 4 pairs"),
        ({"still": -1}, "-1 of 4 pairs"),
    ],
)
def test_tables_that_cannot_be(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        RopeSpec(**{"theta": 10000.0, "width": 8} | fields)
    assert caught.value.hint
