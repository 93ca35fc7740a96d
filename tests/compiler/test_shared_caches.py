"""Layers that read the keys and values of an earlier one, built for real: with its window, and beside a group of their own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import load_decoder
from paged_runner import PagedRunner
from random_checkpoints import write_random_checkpoint
from reference_attention import use_reference_attention
from safetensors.torch import load_file, save_file

from engine.artifacts import load_manifest
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.run_artifact import artifact_logits
from engine.models.architectures import registry
from engine.models.open import open_checkpoint
from engine.models.settings import Settings
from engine.models.spec import ModelSpec

WINDOWS, SOURCES = (8, 0, 8, 0), (None, None, 0, 1)
TOKENS = torch.randint(3, 300, (60,), generator=torch.Generator().manual_seed(1)).tolist()


def sharing(settings: Settings) -> ModelSpec:
    """A Llama whose last two layers have no keys and values of their own."""
    spec = registry.HF["llama"].read(settings)
    fields: list[Any] = [{"window": window, "source": source} for window, source in zip(WINDOWS, SOURCES, strict=True)]
    parts = zip(spec.layers, fields, strict=True)
    return replace(spec, layers=tuple(replace(layer, mixer=replace(layer.mixer, **each)) for layer, each in parts))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    entry = replace(registry.HF["llama"], model_types=("sharing",), read=sharing)
    monkeypatch.setitem(registry.HF, "sharing", entry)
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=len(SOURCES))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "sharing"}))
    absent = {
        f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer, source in enumerate(SOURCES) for name in "kv" if source is not None
    }
    (weights,) = directory.glob("*.safetensors")
    save_file({name: tensor for name, tensor in load_file(weights).items() if name not in absent}, weights, metadata={"format": "pt"})
    return directory


def test_an_artifact_computes_what_the_model_does(checkpoint: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = tmp_path / "artifact"
    build(BuildOptions(model=str(checkpoint), output=artifact, store=store))
    assert [(group.kind, group.layers) for group in load_manifest(artifact).caches] == [("window", [0]), ("full", [1])]
    (stepwise,) = artifact_logits(artifact, [TOKENS], last_only=False)
    (last,) = artifact_logits(artifact, [TOKENS], last_only=True)
    assert torch.equal(stepwise[-1], last[0])
    use_reference_attention(monkeypatch)
    expected = PagedRunner(load_decoder(open_checkpoint(str(checkpoint)))).step([(0, TOKENS)], every_row=True)
    torch.testing.assert_close(stepwise, expected, rtol=1e-4, atol=1e-4)
