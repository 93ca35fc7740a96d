"""GPTQ, AWQ and compressed-tensors: every code, scale and zero point is kept, and what is damaged or not understood is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import (
    SHAPE,
    TOKEN_ACTIVATIONS,
    TOKEN_WEIGHTS,
    Scheme,
    awq,
    compressed,
    compressed_act_order,
    gptq,
    write_quantized,
)
from random_checkpoints import write_random_checkpoint
from safetensors.torch import load_file, save_file

from engine.compiler.weight_formats import choose_formats
from engine.errors import CheckpointError, UnsupportedModelError
from engine.models.open import open_checkpoint
from engine.models.stored_values import values_of

GROUP: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
CHANNEL: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel"}
NVFP4 = compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)
W8A8 = compressed("int-quantized", inputs=TOKEN_ACTIVATIONS, **TOKEN_WEIGHTS)
SCHEMES = {
    "gptq": (gptq(), "w4_g128"),
    "gptq-v2": (gptq(version="gptq_v2"), "w4_g128"),
    "gptq-g32": (gptq(group=32), "w4_g32"),
    "gptq-channel": (gptq(group=-1), "w4_g128"),
    "gptq-8": (gptq(bits=8), "w8_g128"),
    "gptq-bfloat16": (gptq(group=64, dtype=torch.bfloat16), "w4_g64"),
    "gptq-act-order": (gptq(act_order="shared"), "w4_g128"),
    "gptq-act-order-8": (gptq(act_order="own", bits=8, group=32), "w8_g32"),
    "gptq-act-order-uneven": (gptq(act_order="uneven"), "f32"),
    "awq": (awq(), "w4_g128"),
    "awq-g64": (awq(group=64), "w4_g64"),
    "awq-gemv": (awq(version="gemv"), "w4_g128"),
    "awq-gemv-g32": (awq(version="gemv", group=32), "w4_g32"),
    "packed-g128": (compressed("pack-quantized", **GROUP), "w4_g128"),
    "packed-g32-asymmetric": (compressed("pack-quantized", **GROUP | {"group_size": 32, "symmetric": False}), "w4_g32"),
    "packed-act-order": (compressed_act_order(), "w4_g128"),
    "packed-weight-order": (compressed("pack-quantized", **GROUP | {"actorder": "weight"}), "w4_g128"),
    "packed-8-channel": (compressed("pack-quantized", **CHANNEL), "w8_g128"),
    "packed-g16": (compressed("pack-quantized", **GROUP | {"group_size": 16}), "f32"),
    "int-channel": (compressed("int-quantized", **CHANNEL), "w8_g128"),
    "int-channel-asymmetric": (compressed("int-quantized", **CHANNEL | {"symmetric": False}), "w8_g128"),
    "w8a8": (W8A8, "w8a8"),
    "w8a8-asymmetric": (compressed("int-quantized", inputs=TOKEN_ACTIVATIONS | {"symmetric": False}, **TOKEN_WEIGHTS), "w8_g128"),
    "w8a8-static": (
        compressed("int-quantized", inputs=TOKEN_ACTIVATIONS | {"strategy": "tensor", "dynamic": False}, **TOKEN_WEIGHTS),
        "w8_g128",
    ),
    "w8a8-groups": (compressed("int-quantized", inputs=TOKEN_ACTIVATIONS, **GROUP | {"num_bits": 8}), "w8_g128"),
    "w4a8": (compressed("pack-quantized", inputs=TOKEN_ACTIVATIONS, **GROUP), "w4_g128"),
    "mxfp4": (compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32), "mxfp4"),
    "nvfp4": (NVFP4, "nvfp4_div"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("quantized") / "plain", **SHAPE, num_hidden_layers=1)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_value_is_kept(name: str, plain: Path, tmp_path: Path) -> None:
    scheme, format = SCHEMES[name]
    expected = write_quantized(plain, tmp_path / "model", scheme)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    seen = set()
    for parameter, info in checkpoint.parameters.items():
        (tensor,) = checkpoint.tensors_of(parameter)
        loaded = checkpoint.read(parameter)
        if tensor in expected and not info.is_order:
            assert loaded.format == info.format
            seen.add(info.format)
            assert torch.equal(values_of(loaded.format, loaded.data, loaded.order), expected[tensor]), parameter
            assert bool(info.widened_from) == (info.format == "f32")
    # down_proj has 384 columns: three blocks of 128, six of 64.
    assert seen == {format}


@pytest.mark.parametrize(("act_order", "of_k"), [("shared", "order:q"), ("own", "order:k")])
def test_orders_of_columns_are_parameters(act_order: str, of_k: str, plain: Path, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "model", gptq(act_order=act_order))
    stored = load_file(tmp_path / "model" / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    info, order = checkpoint.parameters["layers.0.attention.k.order"], checkpoint.read("layers.0.attention.k.order").data
    assert (info.format, info.shape, order.dtype) == (of_k, (256,), torch.int32)
    assert order.sort().values.tolist() == list(range(256))
    assert stored["model.layers.0.self_attn.k_proj.g_idx"][order.long()].tolist() == [0] * 128 + [1] * 128
    assert checkpoint.parameters["layers.0.mlp.down.order"].format == "order:down"
    assert len([name for name, info in checkpoint.parameters.items() if info.is_order]) == 7


def test_orders_go_with_the_matrices_that_are_kept(plain: Path, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "model", gptq(act_order="shared", bits=8))
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    for kept in (choose_formats(checkpoint, "int8"), choose_formats(checkpoint, "none", "rows")):
        assert kept["layers.0.mlp.up.weight"] == "w8_g128"
        assert kept["layers.0.mlp.up.order"] == "order:gate"
    narrowed = choose_formats(checkpoint, "int4")
    assert narrowed["layers.0.mlp.up.weight"] == "i4_g32"
    assert not [name for name in narrowed if name.endswith(".order")]


def test_schemes_of_activations_are_those_of_the_module(plain: Path, tmp_path: Path) -> None:
    """A module's name is before patterns, and those before classes."""
    both = W8A8.config["config_groups"]["group_0"]
    groups = {
        "group_0": both,
        "group_1": both | {"input_activations": None, "targets": ["re:.*self_attn.*", "re:.*down_proj"]},
        "group_2": both | {"targets": ["model.layers.0.self_attn.o_proj"]},
    }
    write_quantized(plain, tmp_path / "model", Scheme(W8A8.config | {"config_groups": groups}, W8A8.make))
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    kept = {name: info.format for name, info in checkpoint.parameters.items() if info.format.startswith("w8")}
    assert kept == {f"layers.0.attention.{name}.weight": "w8_g128" for name in "qkv"} | {
        "layers.0.attention.o.weight": "w8a8",
        "layers.0.mlp.gate.weight": "w8a8",
        "layers.0.mlp.up.weight": "w8a8",
        "layers.0.mlp.down.weight": "w8_g128",
    }
    assert choose_formats(checkpoint, "int8")["layers.0.mlp.up.weight"] == "w8a8"
    assert choose_formats(checkpoint, "int4")["layers.0.mlp.up.weight"] == "i4_g32"
    assert choose_formats(checkpoint, "none", "rows")["layers.0.mlp.up.weight"] == "w8_g128"


def test_nvfp4_in_rows_of_no_whole_blocks_is_widened(tmp_path: Path) -> None:
    plain = write_random_checkpoint("llama", tmp_path / "plain", **SHAPE | {"intermediate_size": 336}, num_hidden_layers=1)
    expected = write_quantized(plain, tmp_path / "model", NVFP4)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    info, loaded = checkpoint.parameters["layers.0.mlp.down.weight"], checkpoint.read("layers.0.mlp.down.weight")
    assert (info.format, info.widened_from) == ("f32", "NVFP4 in rows that are no multiple of 64")
    assert torch.equal(loaded.data, expected["model.layers.0.mlp.down_proj.weight"])
    assert checkpoint.parameters["layers.0.mlp.up.weight"].format == "nvfp4_div"


@pytest.mark.parametrize(
    ("config", "named", "hint"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantized by bitsandbytes", "--quantize int4"),
        ({"quant_method": "torchao"}, "quantized by torchao", "--quantize int8"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "quantized by marlin-24", "dense checkpoint"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "quantized by marlin", "GPTQ checkpoint"),
        ({"quant_method": "gptq", "bits": 3}, "GPTQ of 3 bits", "GGUF"),
        ({"quant_method": "awq", "bits": 4, "version": "marlin"}, "version marlin", "GGUF"),
        ({"quant_method": "quark"}, "quantization_config", "GPTQ, AWQ, compressed-tensors"),
    ],
)
def test_what_is_not_supported_is_named_with_what_to_do(config: dict[str, Any], named: str, hint: str, plain: Path, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "model", gptq())
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    with pytest.raises(UnsupportedModelError, match=named) as raised:
        open_checkpoint(str(tmp_path / "model"))
    assert hint in raised.value.hint


MODULE = "model.layers.0.mlp.up_proj"
Tensors = dict[str, torch.Tensor]


def _g_idx_out_of_range(tensors: Tensors) -> None:
    tensors[f"{MODULE}.g_idx"][5] = 2


def _infinite_scale(tensors: Tensors) -> None:
    tensors[f"{MODULE}.scales"][0, 3] = torch.inf


def _short_zeros(tensors: Tensors) -> None:
    tensors[f"{MODULE}.qzeros"] = tensors[f"{MODULE}.qzeros"][:, :-1].contiguous()


def _nan_scale(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight_scale"].view(torch.uint8)[3, 2] = 0xFF


def _no_global_scale(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight_global_scale"][0] = 0


def _nan_of_row(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight_scale"][3, 0] = torch.nan


def _scales_of_others(tensors: Tensors) -> None:
    tensors[f"{MODULE}.weight_scale"] = tensors[f"{MODULE}.weight_scale"][:-1].contiguous()


def _cut_codes(tensors: Tensors) -> None:
    tensors[f"{MODULE}.qweight"] = tensors[f"{MODULE}.qweight"][:-1].contiguous()


@pytest.mark.parametrize(
    ("scheme", "damage", "named"),
    [
        (gptq(), _g_idx_out_of_range, "g_idx has the group 2 of 2"),
        (gptq(), _infinite_scale, "a scale is not a finite number"),
        (gptq(), _short_zeros, r"qzeros is I32 \[2, 47\]; it must be I32 \[2, 48\]"),
        (gptq(), _cut_codes, "248 columns are not whole groups|248"),
        (gptq(), lambda tensors: tensors.pop(f"{MODULE}.scales"), "scales is missing"),
        (W8A8, _nan_of_row, "a scale is not a finite number"),
        (W8A8, _scales_of_others, r"weight_scale is F32 \[383, 1\]; it must be"),
        (NVFP4, _nan_scale, "a scale is not a finite number"),
        (NVFP4, _no_global_scale, "the scale of the tensor is 0; it must be a positive"),
    ],
)
def test_damage_is_named(scheme: Scheme, damage: Callable[[Tensors], object], named: str, plain: Path, tmp_path: Path) -> None:
    write_quantized(plain, tmp_path / "model", scheme)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=named) as raised:
        open_checkpoint(str(tmp_path / "model")).read("layers.0.mlp.up.weight")
    assert MODULE in raised.value.message
    assert raised.value.hint
