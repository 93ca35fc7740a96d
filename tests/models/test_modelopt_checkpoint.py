"""ModelOpt's checkpoints: every code and scale of FP8 and NVFP4 is kept, mixtures too, and what is not understood is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from fp8_checkpoints import edit, quantized
from quantized_checkpoints import SHAPE, Scheme, write_quantized
from random_checkpoints import write_random_checkpoint
from torch import Tensor

from engine.compiler.weight_formats import choose_formats, widened
from engine.errors import CheckpointError, UnsupportedModelError
from engine.kernels.linear.packed import Layout
from engine.models.open import open_checkpoint
from engine.models.stored_values import dequantize

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
Tensors = dict[str, Tensor]


def nvfp4(weight: Tensor) -> tuple[Tensors, Tensor]:
    groups = weight.unflatten(1, (-1, 16))
    scale_2 = weight.abs().amax() / 6 / 448
    scales = (groups.abs().amax(2) / 6 / scale_2).to(torch.float8_e4m3fn)
    factors = scales.float() * scale_2
    codes = (groups[..., None] / factors[..., None, None] - E2M1).abs().argmin(3).flatten(1).to(torch.uint8)
    parts = {
        "weight": codes[:, ::2] | codes[:, 1::2] << 4,
        "weight_scale": scales,
        "weight_scale_2": scale_2,
        "input_scale": torch.ones(()),
    }
    return parts, E2M1[codes.long()] * factors.repeat_interleave(16, dim=1)


def fp8(weight: Tensor) -> tuple[Tensors, Tensor]:
    numbers, scale = quantized(weight, "tensor")
    return {"weight": numbers, "weight_scale": scale[0], "input_scale": torch.tensor(0.25)}, numbers.float() * scale


def fp8_blocks(weight: Tensor) -> tuple[Tensors, Tensor]:
    numbers, scales = quantized(weight, "block")
    values = numbers.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: len(weight)]
    return {"weight": numbers, "weight_scale": scales[:, None, :, None]}, values


def mixed(weight: Tensor) -> tuple[Tensors, Tensor]:
    """Square matrices in FP8."""
    return (fp8 if weight.shape[0] == weight.shape[1] else nvfp4)(weight)


def config(algorithm: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "ignore": ["lm_head"]} | more


LAYERS = {"quantized_layers": {"model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"}, "a": {"quant_algo": "NVFP4", "group_size": 16}}}
SCHEMES = {
    "nvfp4": (Scheme(config("NVFP4"), nvfp4), {"nvfp4_mul"}),
    "fp8": (Scheme(config("FP8"), fp8), {"fp8_tensor"}),
    "fp8-blocks": (Scheme(config("fp8_pb_wo"), fp8_blocks), {"fp8_block"}),
    "mixed": (Scheme(config("MIXED_PRECISION", **LAYERS), mixed), {"fp8_tensor", "nvfp4_mul"}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("modelopt") / "plain", **SHAPE, num_hidden_layers=1)


def write(plain: Path, directory: Path, scheme: Scheme) -> Tensors:
    """What each matrix stands for. Caches have scales, too."""
    expected = write_quantized(plain, directory, scheme)
    edit(directory, lambda tensors: tensors.update({f"model.layers.0.self_attn.{x}_proj.{x}_scale": torch.ones(()) for x in "kv"}))
    return expected


@pytest.mark.parametrize("name", SCHEMES)
def test_every_value_is_kept(name: str, plain: Path, tmp_path: Path) -> None:
    scheme, formats = SCHEMES[name]
    expected = write(plain, tmp_path / "model", scheme)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    seen = set()
    for parameter, info in checkpoint.parameters.items():
        (tensor,) = checkpoint.tensors_of(parameter)
        loaded = checkpoint.read(parameter)
        assert (loaded.format, info.widened_from) == (info.format, "")
        if tensor in expected:
            seen.add(info.format)
            assert torch.equal(dequantize(loaded.format, loaded.data), expected[tensor]), parameter
        if info.format == "fp8_tensor":
            assert checkpoint.read(parameter.replace(".weight", ".input_scale")).data.tolist() == [0.25]
    assert seen == formats


def test_nvfp4_is_kept_on_every_target(plain: Path, tmp_path: Path) -> None:
    write(plain, tmp_path / "model", SCHEMES["nvfp4"][0])
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    for layout in get_args(Layout):
        formats = choose_formats(checkpoint, "none", layout)
        assert formats["layers.0.mlp.down.weight"] == "nvfp4_mul"
        assert widened(checkpoint, formats) == ""


def test_settings_in_a_file_of_their_own(plain: Path, tmp_path: Path) -> None:
    """As ModelOpt wrote them before config.json had them."""
    write(plain, tmp_path / "model", SCHEMES["nvfp4"][0])
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    settings = {key: value for key, value in values.pop("quantization_config").items() if key != "quant_method"}
    path.write_text(json.dumps(values))
    own = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": settings | {"exclude_modules": ["lm_head", "model.e*"]}}
    (tmp_path / "model" / "hf_quant_config.json").write_text(json.dumps(own))
    assert open_checkpoint(str(tmp_path / "model")).parameters["layers.0.mlp.up.weight"].format == "nvfp4_mul"


@pytest.mark.parametrize("settings", [config("W4A16_AWQ"), config("MIXED_PRECISION", quantized_layers={"a": {"quant_algo": "W4A16_AWQ"}})])
def test_other_algorithms_are_refused_by_name(settings: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    write(plain, tmp_path / "model", Scheme(settings, nvfp4))
    with pytest.raises(UnsupportedModelError, match="ModelOpt's W4A16_AWQ") as raised:
        open_checkpoint(str(tmp_path / "model"))
    assert "NVFP4" in raised.value.hint


MODULE = "model.layers.0.mlp.up_proj"


def _nan(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight_scale"].view(torch.uint8)[1, 1] = 0x7F


def _negative(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight_scale_2"].neg_()


def _narrow(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight"] = tensors[f"{MODULE}.weight"][:, :-1].contiguous()


def _short(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight_scale"] = tensors[f"{MODULE}.weight_scale"][:-1].contiguous()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_nan, "a scale is not a finite number"),
        (_negative, "the scale of the tensor is -"),
        (_narrow, r"weight is U8 \[384, 127\]"),
        (_short, r"weight_scale is F8_E4M3 \[383, 16\]"),
        (lambda tensors: tensors.pop(f"{MODULE}.weight_scale_2"), "it has no weight_scale_2"),
    ],
)
def test_damage_is_named(damage: Callable[[Tensors], object], named: str, plain: Path, tmp_path: Path) -> None:
    write(plain, tmp_path / "model", SCHEMES["nvfp4"][0])
    edit(tmp_path / "model", damage)
    with pytest.raises(CheckpointError, match=named) as raised:
        open_checkpoint(str(tmp_path / "model")).read("layers.0.mlp.up.weight")
    assert MODULE in raised.value.message
    assert raised.value.hint
