"""DBRX: settings in objects of their own, and what of them is refused."""

from typing import Any

import pytest

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.architectures.registry import spec_from_hf
from engine.models.parts.attention import AttentionSpec
from engine.models.parts.moe import MoESpec
from engine.models.spec import ModelSpec

# As the hub has it.
DBRX: dict[str, Any] = {
    "model_type": "dbrx",
    "architectures": ["DbrxForCausalLM"],
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "model_type": "", "rope_theta": 500000},
    "d_model": 96,
    "emb_pdrop": 0.0,
    "ffn_config": {
        "ffn_hidden_size": 64,
        "model_type": "",
        "moe_jitter_eps": 0.01,
        "moe_loss_weight": 0.05,
        "moe_num_experts": 4,
        "moe_top_k": 2,
    },
    "initializer_range": 0.02,
    "max_seq_len": 32768,
    "n_heads": 4,
    "n_layers": 2,
    "output_router_logits": False,
    "resid_pdrop": 0.0,
    "router_aux_loss_coef": 0.05,
    "tie_word_embeddings": False,
    "vocab_size": 300,
}


def read(**changes: Any) -> ModelSpec:
    return spec_from_hf(DBRX | changes)[0]


def test_settings_in_their_objects_are_read() -> None:
    spec = read()
    mixer, channel = spec.layers[0].mixer, spec.layers[0].channel
    assert isinstance(mixer, AttentionSpec)
    assert isinstance(channel, MoESpec)
    assert mixer.rope is not None
    assert (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, mixer.clip, mixer.rope.theta) == (4, 2, 24, 8.0, 500000.0)
    assert (channel.router.experts, channel.router.chosen, channel.router.normalized, channel.size) == (4, 2, True, 64)
    assert (spec.hidden_size, spec.max_context) == (96, 32768)


def test_a_table_of_the_whole_counts_where_there_is_one() -> None:
    mixer = read(rope_parameters={"rope_type": "default", "rope_theta": 7000.0}).layers[0].mixer
    assert mixer.rope is not None
    assert mixer.rope.theta == 7000.0


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("ffn_config", {"moe_normalize_expert_weights": 2}, "moe_normalize_expert_weights"),
        ("ffn_config", {"ffn_act_fn": {"name": "silu", "beta": 2.0}}, "ffn_act_fn"),
        ("ffn_config", {"ffn_act_fn": {"name": "softsign"}}, "softsign"),
        ("attn_config", {"alibi": True}, "alibi = True"),
    ],
    ids=str,
)
def test_what_would_change_the_maths_is_refused(part: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read(**{part: DBRX[part] | changes})


def test_without_a_norm_weights_are_those_of_the_softmax() -> None:
    channel = read(ffn_config=DBRX["ffn_config"] | {"moe_normalize_expert_weights": None}).layers[0].channel
    assert isinstance(channel, MoESpec)
    assert not channel.router.normalized


def test_an_object_that_is_none_is_named() -> None:
    with pytest.raises(CheckpointError, match="attn_config is 'full'"):
        read(attn_config="full")
