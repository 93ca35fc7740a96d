"""benchmarks/quality.py: weights in another order are the same model, and what is measured of it says so."""

import json
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from checkout import ROOT
from gguf_files import write_gguf
from random_checkpoints import write_random_checkpoint

from engine.compiler.reference import read
from engine.models.open import open_checkpoint

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16, "num_hidden_layers": 2}


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("quality")


def test_another_order_is_the_same_function(quality: Any, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_random_checkpoint("llama", tmp_path / "model", **SIZES)))
    texts = quality.Texts(checkpoint, "the engine reads what the model wrote " * 20, 64)
    as_it_was = {name: read(checkpoint, name) for name in checkpoint.parameters}
    reordered = quality.in_another_order(checkpoint)
    for name, weight in as_it_was.items():
        if weight.ndim == 2:
            assert not torch.equal(weight, reordered[name]), name
            assert torch.equal(weight.flatten().sort().values, reordered[name].flatten().sort().values), name
    torch.testing.assert_close(texts.logits(reordered), texts.logits(as_it_was), rtol=1e-4, atol=1e-4)


def test_a_gguf_file_with_other_values(quality: Any, tmp_path: Path) -> None:
    path = write_gguf(write_random_checkpoint("llama", tmp_path / "model", **SIZES), tmp_path / "model.gguf")
    weights = quality.in_another_order(open_checkpoint(str(path)))
    quality.write_gguf(path, weights, tmp_path / "other.gguf")
    other = open_checkpoint(str(tmp_path / "other.gguf"))
    for name, weight in weights.items():
        assert torch.equal(read(other, name), weight), name


def test_fewer_bits_cost_more(quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    monkeypatch.setenv("ENGINE_STORE", str(store))
    model = write_random_checkpoint("llama", tmp_path / "model", **SIZES)
    file = tmp_path / "quality.json"
    options = ["--tokens", "200", "--gguf-types", "Q4_0", "--kv-dtypes", "float16,bfloat16,int8", "--json", str(file)]
    assert quality.main([str(model), *options]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == ["float32", "kv float16", "kv bfloat16", "kv int8", "int8", "int6", "int5", "int4", "Q4_0"]
    assert rows["float32"]["kl_mean"] == 0
    assert rows["int8"]["kl_mean"] < rows["int6"]["kl_mean"] < rows["int5"]["kl_mean"] < rows["int4"]["kl_mean"]
    assert 0 < rows["kv float16"]["kl_mean"] < rows["kv bfloat16"]["kl_mean"] < rows["kv int8"]["kl_mean"]
    assert rows["int8"]["bits"] == 8.5
    assert rows["int4"]["calibration"] == "random tokens"


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_what_quantizing_a_real_model_costs(
    quality: Any, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    """SmolLM2 calibrated on random tokens, its weights on no grid: by at most as much do next tokens diverge, in nats."""
    monkeypatch.setenv("ENGINE_STORE", str(store))
    text, file = tmp_path / "text.md", tmp_path / "quality.json"
    text.write_text("\n\n".join(topics.values()))  # Python's own documentation: there is no other long text on every machine
    assert quality.main([str(smollm2_gguf), "--text", str(text), "--tokens", "1024", "--json", str(file)]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    for setting, bits, divergence in (("int4", 5.25, 0.07), ("int5", 6.05, 0.025), ("int6", 6.95, 0.01), ("int8", 8.5, 0.0025)):
        assert rows[setting]["bits"] <= bits, setting
        assert rows[setting]["kl_mean"] <= divergence, setting
