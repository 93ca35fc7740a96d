"""Models of several parts: the language model is read from among the others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import randomize, reference_logits, tiny_config, write_tiny_checkpoint
from loading import load_decoder
from paged_runner import PagedRunner
from random_checkpoints import save_tokenizer, train_tokenizer
from reference_attention import use_reference_attention

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.open import open_checkpoint

TOKENS = torch.randint(3, 300, (30,), generator=torch.Generator().manual_seed(1)).tolist()
EYE: dict[str, Any] = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
EYE |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}


def edited(directory: Path, **changes: Any) -> str:
    """The checkpoint with settings of its configuration changed."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return str(directory)


@pytest.mark.parametrize("text", ["mistral", "ministral3"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_text_of_mistral_3_equals_transformers(text: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)
    config = transformers.Mistral3Config(text_config=tiny_config(text), vision_config=EYE, tie_word_embeddings=tied)
    model = transformers.Mistral3ForConditionalGeneration._from_config(config, attn_implementation="eager", dtype=torch.float32)
    randomize(model, seed=0)
    model.save_pretrained(tmp_path)
    save_tokenizer(train_tokenizer(), tmp_path)
    expected, rounding = reference_logits(tmp_path, TOKENS)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.spec.head.tied is tied
    actual = PagedRunner(load_decoder(checkpoint)).step([(0, TOKENS)])
    assert float((actual[0] - expected[-1]).abs().max()) <= 4 * max(rounding, 1e-6 * float(expected.abs().max()))


@torch.no_grad()
def test_the_text_of_llama_4_equals_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)
    eye = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    eye |= {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    config = transformers.Llama4Config(text_config=tiny_config("llama4_text"), vision_config=eye)
    model = transformers.Llama4ForConditionalGeneration._from_config(config, attn_implementation="eager", dtype=torch.float32)
    randomize(model, seed=0)
    model.save_pretrained(tmp_path)
    save_tokenizer(train_tokenizer(), tmp_path)
    # The whole model does not run without images.
    text = model.language_model
    expected, exact = text(torch.tensor([TOKENS])).logits[0, -1], text.double()(torch.tensor([TOKENS])).logits[0, -1]
    rounding = max(float((expected - exact).abs().max()), 1e-6 * float(expected.abs().max()))
    actual = PagedRunner(load_decoder(open_checkpoint(str(tmp_path)))).step([(0, TOKENS)])
    assert float((actual[0] - expected).abs().max()) <= 4 * rounding


def test_settings_of_the_text_are_checked_as_its_own(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint("gemma3", tmp_path / "model")
    text = json.loads((directory / "config.json").read_text())["text_config"]
    with pytest.raises(UnsupportedModelError, match="extra_gate"):
        open_checkpoint(edited(directory, text_config=text | {"extra_gate": 3}))
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        open_checkpoint(edited(directory, text_config=text, quantization_config={"quant_method": "other"}))
    with pytest.raises(CheckpointError, match="text_config"):
        open_checkpoint(edited(directory, text_config=None, quantization_config=None))


def test_a_tensor_of_the_text_that_is_missing_is_named(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint("fuyu", tmp_path / "model")
    text = json.loads((directory / "config.json").read_text())["text_config"]
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint(edited(directory, text_config=text | {"num_hidden_layers": 5}))
