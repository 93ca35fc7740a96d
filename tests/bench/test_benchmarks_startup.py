"""benchmarks/startup.py: its second checkpoint is another one of the same architecture."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import ROOT
from gguf_files import write_gguf
from random_checkpoints import write_random_checkpoint

from engine.compiler.model_facts import model_facts
from engine.models.open import open_checkpoint
from engine.models.stored_values import dequantize


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
def test_other_weights_of_the_same_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16, "num_hidden_layers": 1}
    checkpoint = write_random_checkpoint("llama", tmp_path / "model", **sizes)
    model = write_gguf(checkpoint, tmp_path / "model.gguf", quantization=quantization)
    other = import_module("startup").write_other_weights(model, tmp_path / "other.gguf")
    first, second = open_checkpoint(str(model)), open_checkpoint(str(other))
    assert model_facts(first) == model_facts(second)
    assert first.parameters["layers.0.mlp.up.weight"].format == quantization.lower()
    ours, theirs = (checkpoint.read("layers.0.mlp.up.weight") for checkpoint in (first, second))
    values, others = (dequantize(loaded.format, loaded.data).numpy() for loaded in (ours, theirs))
    assert (values != others).mean() > 0.5
    assert np.abs(others).max() < 2 * np.abs(values).max()
    assert np.array_equal(first.read("norm.weight").data, second.read("norm.weight").data)
