"""Where latent attention's matrices lie in files: heads turned, one matrix for keys and values or two, quantized ones."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import GENERIC, write_tiny_checkpoint
from gguf_architectures import ARCHITECTURES, Config, Weights, merge_experts
from gguf_files import write_gguf
from loading import load_decoder
from paged_runner import PagedRunner
from reference_attention import use_reference_attention
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.checkpoint import Checkpoint
from engine.models.open import open_checkpoint
from engine.models.parts.latent_attention import LatentAttentionSpec
from engine.models.stored_values import values_of

HOW = ARCHITECTURES["deepseek_v2"]
KEYS, VALUES = "layers.1.attention.key_up.weight", "layers.1.attention.value_up.weight"


def _old_keys(config: Config, weights: Weights) -> dict[str, Any]:
    """Those of a file whose keys and values are as wide as if none were made of latents."""
    sizes = {"key": config["qk_nope_head_dim"] + config["qk_rope_head_dim"], "value": config["v_head_dim"]}
    own = {f"attention.{which}_length": size for which, size in sizes.items()} | {f"attention.{which}_length_mla": None for which in sizes}
    return HOW.keys(config, weights) | own | {"attention.head_count_kv": config["num_attention_heads"]}


def old_file(directory: Path, path: Path, patch: pytest.MonkeyPatch, quantization: str) -> Checkpoint:
    patch.setitem(ARCHITECTURES, "deepseek_v2", dataclasses.replace(HOW, keys=_old_keys, transforms=(merge_experts,)))
    write_gguf(directory, path, quantization=lambda name: quantization if "attn_kv_b" in name else "F32")
    return open_checkpoint(str(path))


def values(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    loaded = checkpoint.read(name)
    return values_of(loaded.format, loaded.data)


def test_old_files_with_one_matrix_are_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_tiny_checkpoint("deepseek_v2", tmp_path / "model", **HOW.settings)
    new = open_checkpoint(str(write_gguf(directory, tmp_path / "new.gguf")))
    old = old_file(directory, tmp_path / "old.gguf", monkeypatch, "F32")
    assert old.spec == new.spec == open_checkpoint(str(directory)).spec
    assert all(torch.equal(values(old, name), values(new, name)) for name in new.parameters)


def test_of_a_quantized_matrix_values_keep_their_blocks_and_keys_are_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_tiny_checkpoint("deepseek_v2", tmp_path / "model", **HOW.settings)
    exact, old = open_checkpoint(str(directory)), old_file(directory, tmp_path / "old.gguf", monkeypatch, "Q8_0")
    assert (old.parameters[VALUES].format, old.parameters[VALUES].widened_from) == ("q8_0", "")
    assert (old.parameters[KEYS].format, old.parameters[KEYS].widened_from) == ("f32", "Q8_0")
    for name in (KEYS, VALUES):
        wanted = values(exact, name)
        assert values(old, name).shape == wanted.shape == old.parameters[name].shape
        assert (values(old, name) - wanted).abs().max() <= wanted.abs().max() / 127


def test_keys_are_turned_head_by_head(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint("deepseek_v3", tmp_path / "model")
    checkpoint = open_checkpoint(str(directory))
    spec = checkpoint.spec.layers[0].mixer
    assert isinstance(spec, LatentAttentionSpec)

    stored = load_file(directory / "model.safetensors")["model.layers.1.self_attn.kv_b_proj.weight"].view(spec.num_heads, -1, spec.rank)
    keys, by_head = stored[:, : spec.plain_dim], values(checkpoint, VALUES).view(spec.num_heads, spec.value_dim, spec.rank)
    assert torch.equal(values(checkpoint, KEYS).view(spec.num_heads, spec.rank, spec.plain_dim), keys.transpose(1, 2))
    assert torch.equal(by_head, stored[:, spec.plain_dim :])


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no latent": (CheckpointError, "rank = 0", {"kv_lora_rank": 0}),
    "no values": (CheckpointError, "value_dim = 0", {"v_head_dim": 0}),
    "a negative rank of queries": (CheckpointError, "query_rank = -1", {"q_lora_rank": -1}),
    "an odd rotation": (CheckpointError, "rotates 15 elements", {"qk_rope_head_dim": 15}),
    "halves that rotate": (UnsupportedModelError, "rope_interleave", {"rope_interleave": False}),
    "another latent than its matrices": (CheckpointError, "implies", {"kv_lora_rank": 48}),
    "more experts than there are": (CheckpointError, "9 of 4 experts", {"num_experts_per_tok": 9}),
}


@pytest.mark.parametrize(("error", "message", "change"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_named(error: type[Exception], message: str, change: dict[str, Any], tmp_path: Path) -> None:
    directory = write_tiny_checkpoint("deepseek_v3", tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=message):
        open_checkpoint(str(directory))


def test_kimi_is_deepseek_v3_by_another_name(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint("deepseek_v3", tmp_path / "model")
    named = open_checkpoint(str(directory)).spec
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "kimi_k2"}))
    assert dataclasses.replace(open_checkpoint(str(directory)).spec, architecture=named.architecture) == named
    assert named.vocab_size == GENERIC["vocab_size"]


BIAS = "mlp.gate.e_score_correction_bias"


def without_biases(directory: Path, to: Path, *, zeros: bool) -> Path:
    """The checkpoint with the biases of its routers' choices zeros, or left out."""
    tensors = load_file(directory / "model.safetensors")
    biases = [name for name in tensors if name.endswith(BIAS)]
    assert len(biases) > 1
    for name in biases:
        bias = tensors.pop(name)
        if zeros:
            tensors[name] = torch.zeros_like(bias)
    shutil.copytree(directory, to)
    save_file(tensors, to / "model.safetensors")
    return to


def test_routers_of_axk1_may_be_published_without_their_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_reference_attention(monkeypatch)
    directory = write_tiny_checkpoint("axk1", tmp_path / "model")
    zeros, absent = (open_checkpoint(str(without_biases(directory, tmp_path / str(zeros), zeros=zeros))) for zeros in (True, False))
    assert not any(name.endswith("choice_bias") for name in absent.parameters)
    steps = [[(0, list(range(5, 45)))], [(0, [7])]]
    logits = [[runner.step(step) for step in steps] for runner in (PagedRunner(load_decoder(each)) for each in (zeros, absent))]
    assert all(map(torch.equal, *logits))


def test_those_of_others_may_not(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint("deepseek_v3", tmp_path / "model")
    with pytest.raises(CheckpointError, match=f"tensors that are missing: model.layers.1.{BIAS}"):
        open_checkpoint(str(without_biases(directory, tmp_path / "absent", zeros=False)))
