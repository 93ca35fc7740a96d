"""The tables of tensor names, against the names that `transformers` and the `gguf` package use."""

import gguf
import pytest

from engine.errors import CheckpointError
from engine.models.names import GGUF_NAMES, HF_NAMES, NameTable, match_names, parameter_name

PARAMETERS = ["embed.weight", "norm.weight", "head.weight", "layers.0.attention.q.weight", "layers.11.mlp.up.weight"]
TENSORS = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.11.mlp.up_proj.weight",
]


def test_every_tensor_finds_its_parameter() -> None:
    assert match_names(HF_NAMES, TENSORS, PARAMETERS, "model") == dict(zip(PARAMETERS, TENSORS, strict=True))


@pytest.mark.parametrize("table", [HF_NAMES, GGUF_NAMES])
def test_no_parameter_has_two_names(table: NameTable) -> None:
    assert len(set(table.names.values())) == len(table.names)


def test_both_tables_know_the_same_parameters() -> None:
    """But for sinks, which no architecture has that is read from GGUF."""
    assert set(HF_NAMES.names.values()) == {*GGUF_NAMES.names.values(), "layers.{}.attention.sinks"}


def test_gguf_names_translate_to_the_hugging_face_names_they_stand_for() -> None:
    translate = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 3)
    originals = {parameter: name for name, parameter in GGUF_NAMES.names.items()}
    for hf_name, parameter in HF_NAMES.names.items():
        if parameter in originals:
            assert translate.get_name(hf_name.format(2), (".weight", ".bias")) == originals[parameter].format(2), hf_name


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.x.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj",
        "layers.1.mlp.up_proj.weight",
        "model.layers.{}.mlp.up_proj.weight",
    ],
)
def test_names_that_only_look_alike_are_not_known(name: str) -> None:
    with pytest.raises(CheckpointError, match="no place for"):
        match_names(HF_NAMES, [*TENSORS, name], PARAMETERS, "model")


def test_a_layer_that_the_model_does_not_have_is_unused() -> None:
    assert parameter_name(HF_NAMES, "model.layers.12.mlp.up_proj.weight") == "layers.12.mlp.up.weight"
    with pytest.raises(CheckpointError, match=r"no place for: model\.layers\.12\.mlp\.up_proj\.weight"):
        match_names(HF_NAMES, [*TENSORS, "model.layers.12.mlp.up_proj.weight"], PARAMETERS, "model")


def test_ten_names_and_a_count() -> None:
    extra = [f"extra.{index}.weight" for index in range(13)]
    with pytest.raises(CheckpointError) as caught:
        match_names(HF_NAMES, [*TENSORS, *extra], PARAMETERS, "model")
    assert "extra.9.weight and 3 more" in str(caught.value)
    assert "extra.10" not in str(caught.value)


def test_a_missing_tensor_is_named_as_the_checkpoint_would() -> None:
    with pytest.raises(CheckpointError) as caught:
        match_names(HF_NAMES, TENSORS[:-1], PARAMETERS, "model")
    assert caught.value.message.splitlines()[1:] == ["  tensors that are missing: model.layers.11.mlp.up_proj.weight"]
