"""FP8 checkpoints as they are published: every number and scale is kept, and what is not understood is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_checkpoints import BLOCK_CONFIG, FP8_CONFIG, SHAPE, STATIC, compressed, edit, write_fp8
from random_checkpoints import write_random_checkpoint
from safetensors.torch import load_file

from engine.compiler.build import build
from engine.compiler.options import BuildOptions
from engine.compiler.weight_formats import choose_formats
from engine.errors import CheckpointError, EngineError, UnsupportedModelError
from engine.models.open import open_checkpoint
from engine.models.storage.fp8 import fp8_format
from engine.models.stored_values import dequantize


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("fp8") / "plain", **SHAPE, num_hidden_layers=2)


@pytest.mark.parametrize("kind", ["block", "channel", "tensor"])
def test_every_number_and_scale_is_kept(plain: Path, kind: str, tmp_path: Path) -> None:
    directory = write_fp8(plain, tmp_path / "model", kind)
    stored = load_file(directory / "model.safetensors")
    checkpoint = open_checkpoint(str(directory))
    wanted = "fp8_block" if kind == "block" else "fp8_channel"
    for parameter, name in (("layers.1.mlp.down.weight", "model.layers.1.mlp.down_proj.weight"), ("layers.0.attention.q.weight", "")):
        name = name or "model.layers.0.self_attn.q_proj.weight"
        assert checkpoint.parameters[parameter].format == wanted
        numbers = stored[name].float()
        scales = stored[name + ("_scale_inv" if kind == "block" else "_scale")].float()
        if kind == "block":
            scales = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: numbers.shape[0], : numbers.shape[1]]
        loaded = checkpoint.read(parameter)
        assert torch.equal(dequantize(loaded.format, loaded.data), numbers * scales)
    assert checkpoint.parameters["embed.weight"].format == "bf16"
    assert checkpoint.parameters["norm.weight"].format == "bf16"


def test_what_becomes_of_it_on_each_kind_of_target(plain: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_fp8(plain, tmp_path / "model", "channel")))
    name = "layers.0.mlp.up.weight"
    assert choose_formats(checkpoint, "none", "rows")[name] == "fp8_channel"
    assert choose_formats(checkpoint, "none", "panels")[name] == "f32"
    assert choose_formats(checkpoint, "int8", "panels")[name] == "q8_0"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BLOCK_CONFIG, "fp8_block"),
        (BLOCK_CONFIG | {"weight_block_size": [64, 128]}, None),
        (compressed(strategy="channel"), "fp8_channel"),
        (compressed(strategy="tensor"), "fp8_channel"),
        (compressed(strategy="block", block_structure=[128, 128]), "fp8_block"),
        (compressed(strategy="group", group_size=64), None),
        (FP8_CONFIG, "fp8_tensor"),
        (FP8_CONFIG | {"activation_scheme": "dynamic"}, "fp8_channel"),
        (FP8_CONFIG | {"activation_scheme": "calibrated"}, None),
        (BLOCK_CONFIG | {"activation_scheme": "static"}, None),
        (compressed(STATIC, strategy="channel"), "fp8_tensor"),
        (compressed(STATIC, strategy="tensor"), "fp8_tensor"),
        (compressed(STATIC, strategy="block", block_structure=[128, 128]), None),
        (compressed(STATIC | {"strategy": "group"}, strategy="tensor"), None),
        (compressed(STATIC | {"type": "int"}, strategy="tensor"), None),
        (compressed(STATIC | {"dynamic": True}, strategy="tensor"), "fp8_channel"),
        (compressed(strategy="channel", num_bits=4, type="int"), None),
        ({"quant_method": "awq", "bits": 4}, None),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, None),
        ("fp8", None),
        (None, None),
    ],
)
def test_which_settings_are_understood(settings: Any, expected: str | None) -> None:
    assert fp8_format({"quantization_config": settings}) == expected


def test_other_quantized_checkpoints_are_refused(plain: Path, tmp_path: Path) -> None:
    directory = write_fp8(plain, tmp_path / "model", "channel", quantization_config={"quant_method": "quark"})
    with pytest.raises(UnsupportedModelError, match="quantization_config") as error:
        open_checkpoint(str(directory))
    assert "FP8 is supported" in (error.value.hint or "")


def test_scales_that_are_missing(plain: Path, tmp_path: Path) -> None:
    directory = write_fp8(plain, tmp_path / "model", "channel")
    edit(directory, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight_scale"))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has no scales"):
        open_checkpoint(str(directory))


def test_scales_that_do_not_fit(plain: Path, tmp_path: Path) -> None:
    directory = write_fp8(plain, tmp_path / "model", "block")
    edit(directory, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(2, 2)}))
    with pytest.raises(CheckpointError, match=r"up_proj.weight \[384, 128\] has scales F32 \[2, 2\]"):
        open_checkpoint(str(directory))


def test_fp8_is_not_for_cpus(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fp8") as error:
        build(BuildOptions(model=str(plain), output=tmp_path / "out", quantize="fp8", store=tmp_path / "store"))
    assert "sm90" in (error.value.hint or "")
    assert not (tmp_path / "out").exists()
