"""The tiny checkpoints that other tests compare with: made for any family, the same each time, random in every part."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from families import (
    GENERIC,
    NO_REFERENCE,
    OVERRIDES,
    UNLISTED,
    VARIANTS,
    causal_families,
    reference_logits,
    tiny_config,
    write_tiny_checkpoint,
)
from safetensors.torch import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TOKENS = torch.randint(3, GENERIC["vocab_size"], (40,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small spend longer on waking a second thread than on computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["gemma2", "cohere-qk-norm", "apertus", "falcon-serial", "phi3-longrope", "qwen3_moe", "lfm2", "gemma3"])
def test_a_checkpoint_runs_and_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    first, second, other = (
        write_tiny_checkpoint(name, tmp_path / directory, seed=seed) for directory, seed in (("first", 3), ("second", 3), ("other", 4))
    )
    weights = [(directory / "model.safetensors").read_bytes() for directory in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    logits, rounding = reference_logits(first, TOKENS)
    assert logits.shape == (len(TOKENS), GENERIC["vocab_size"])
    assert torch.isfinite(logits).all()
    assert rounding < 1e-5 * float(logits.abs().max())


@pytest.mark.parametrize("name", ["gemma3_text", "apertus", "nemotron", "granite_swa"])
def test_every_tensor_changes_the_logits(name: str, tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(name, tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    tokens = torch.tensor([TOKENS])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        before = model(tokens, use_cache=False).logits
        for tensor in model.parameters():
            kept = tensor.clone()
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
            after = model(tokens, use_cache=False).logits
            tensor.copy_(kept)
            assert float((after - before).abs().max()) > 1e-4


def test_each_kind_of_layer_is_there() -> None:
    for name in ("gemma2", "gemma3_text", "cohere2", "exaone4", "olmo3", "qwen3_next"):
        config = tiny_config(name)
        assert set(config.layer_types) == set(CONFIG_MAPPING[name]().layer_types), name
        assert len(config.layer_types) == config.num_hidden_layers == 4


def test_weights_are_float32_and_named_as_published(tmp_path: Path) -> None:
    weights = load_file(write_tiny_checkpoint("gpt_neox", tmp_path / "model") / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert {"gpt_neox.embed_in.weight", "embed_out.weight"} <= set(weights)


def test_the_tables_name_known_families() -> None:
    known = set(causal_families())
    assert set(OVERRIDES) <= known | set(UNLISTED)
    assert set(NO_REFERENCE) <= known
    assert {family for family, _ in VARIANTS.values()} <= known | set(UNLISTED)
    assert not set(VARIANTS) & known
