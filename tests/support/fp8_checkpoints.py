"""FP8 checkpoints as they are published, made of random ones: numbers, scales of weights, scales of activations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32}
FP8_CONFIG = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
BLOCK_CONFIG = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
STATIC: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
"""Activations with one scale per linear, as compressed-tensors says it."""


def compressed(activations: Any = None, **weights: Any) -> dict[str, Any]:
    group = {
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False} | weights,
        "input_activations": activations or {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        "targets": ["Linear"],
    }
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def quantized(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 numbers and scales such that value = number * scale."""
    rows, columns = weight.shape
    if kind == "block":
        padded = torch.nn.functional.pad(weight, (0, 0, 0, -rows % 128))
        blocks = padded.view(-1, 128, columns // 128, 128)
        scales = blocks.abs().amax((1, 3)) / 448
        numbers = (blocks / scales[:, None, :, None]).view(-1, columns)[:rows]
    else:
        scales = (weight.abs().amax(1, keepdim=True) if kind == "channel" else weight.abs().amax().reshape(1)) / 448
        numbers = weight / scales
    return numbers.to(torch.float8_e4m3fn), scales


def write_fp8(plain: Path, directory: Path, kind: str, **changes: Any) -> Path:
    """The checkpoint with every linear but the head in FP8, activations dynamic. kind: of weights' scales, block, channel or tensor."""
    strategy = {"strategy": kind} | ({"block_structure": [128, 128]} if kind == "block" else {})
    config = {"quantization_config": BLOCK_CONFIG if kind == "block" else compressed(**strategy)} | changes
    tensors = _fp8_tensors(plain, kind, "_scale_inv" if kind == "block" else "_scale")
    if kind == "tensor":
        tensors |= {f"{name}.input_scale": torch.ones(1) for name in _linears(tensors)}
    return _write(plain, directory, config, tensors)


def write_static_fp8(plain: Path, directory: Path, input_scale: Callable[[str], float], *, publisher: str = "compressed-tensors") -> Path:
    """The checkpoint with every linear but the head in FP8, activations static.

    input_scale: of each linear by its name. publisher: compressed-tensors (a scale for each of a weight's outputs), fp8 (one per weight),
    or transformers (likewise, under other names).
    """
    config, kind, scale, of_input = {
        "compressed-tensors": (compressed(STATIC, strategy="channel"), "channel", "_scale", ".input_scale"),
        "fp8": (FP8_CONFIG, "tensor", "_scale", ".input_scale"),
        "transformers": (FP8_CONFIG | {"weight_block_size": None}, "tensor", "_scale_inv", ".activation_scale"),
    }[publisher]
    tensors = _fp8_tensors(plain, kind, scale)
    shape = (1,) if publisher == "compressed-tensors" else ()
    dtype = torch.bfloat16 if publisher == "transformers" else torch.float32
    tensors |= {name + of_input: torch.full(shape, input_scale(name), dtype=dtype) for name in _linears(tensors)}
    return _write(plain, directory, {"quantization_config": config}, tensors)


def _linears(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn]


def _fp8_tensors(plain: Path, kind: str, suffix: str) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = tensor.bfloat16()
            continue
        tensors[name], scales = quantized(tensor, kind)
        tensors[name + suffix] = scales if kind == "block" else scales.bfloat16()
    return tensors


def _write(plain: Path, directory: Path, changes: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    for path in plain.iterdir():
        if path.suffix == ".json" and path.name != "config.json":
            (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    save_file(tensors, directory / "model.safetensors")
    return directory


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a checkpoint."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
