"""GGUF files made from Hugging Face checkpoints the way llama.cpp's converter makes them, with the `gguf` package alone."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_architectures import ARCHITECTURES, common_keys
from safetensors.numpy import load_file
from weight_blocks import GGUF_TYPES, weight_like_blocks

_QUANTIZED_BY_GGUF = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "TQ1_0", "TQ2_0")
"""Types that the `gguf` package quantizes to; it only reads the others."""


def write_gguf(
    directory: Path,
    path: Path,
    *,
    architecture: str | None = None,
    quantization: str | Callable[[str], str] = "F32",
    metadata: dict[str, Any] | None = None,
    split_max_tensors: int = 0,
    scales: dict[str, float] | None = None,
) -> Path:
    """Writes the checkpoint in `directory` (float32, a random one) as a GGUF file; returns its path, or that of the first of several.

    architecture: a key of ARCHITECTURES, where it is not the checkpoint's model type. quantization: type of the matrices, or
    by the tensor's name; types that the `gguf` package does not quantize to get random blocks. metadata: keys to add or, where the
    value is None, to leave out. split_max_tensors: more of them go to other files. scales: further tensors of one number.
    """
    config = json.loads((directory / "config.json").read_text())
    how = ARCHITECTURES[architecture or config["model_type"]]
    weights = load_file(directory / "model.safetensors")
    keys = {
        key if key.startswith("xielu.") else f"{how.name}.{key}": value
        for key, value in (common_keys(config) | how.keys(config, weights)).items()
    }
    for transform in how.transforms:
        weights = transform(weights, config)
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, how.name, split_max_tensors=split_max_tensors)
    for key, value in (keys | tokenizer_metadata(directory) | (metadata or {})).items():
        _add(writer, key, value)
    _add_tensors(writer, how.like or how.name, keys[f"{how.name}.block_count"], weights, quantization)
    for name, value in (scales or {}).items():
        writer.add_tensor(name, np.array([value], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def tokenizer_metadata(directory: Path) -> dict[str, Any]:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = [token for token, _ in sorted((vocabulary | special).items(), key=lambda item: item[1])]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": (directory / "chat_template.jinja").read_text(),
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _add_tensors(
    writer: gguf.GGUFWriter, architecture: str, num_layers: int, weights: dict[str, np.ndarray], quantization: str | Callable[[str], str]
) -> None:
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, num_layers)
    for name, weight in weights.items():
        target = name if name.startswith(("rope_", "blk.")) else names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"GGUF's {architecture} has no name for {name}")
        matrix = weight.ndim >= 2 and target.endswith(".weight") and "norm" not in target and "ffn_gate_inp" not in target
        name = (quantization if isinstance(quantization, str) else quantization(target)) if matrix else "F32"
        kind = gguf.GGMLQuantizationType[name]
        if name in _QUANTIZED_BY_GGUF:
            data = gguf.quants.quantize(np.ascontiguousarray(weight), kind)
        else:
            blocks = _random_blocks(kind, math.prod(weight.shape[:-1]), weight.shape[-1], seed=len(target))
            data = blocks.reshape(*weight.shape[:-1], -1)
        writer.add_tensor(target, data, raw_dtype=kind)


def _random_blocks(kind: gguf.GGMLQuantizationType, rows: int, in_features: int, seed: int) -> np.ndarray:
    """uint8 [rows, bytes]; zeros of a type that nothing here knows."""
    if kind is gguf.GGMLQuantizationType.NVFP4:
        blocks = np.random.default_rng(seed).integers(0, 256, (rows, in_features // 64, 36), dtype=np.uint8)
        blocks[..., :4] &= 0x1F  # scales of up to 2^-4, and below the normal numbers
        blocks[0, 0, 0] = 0x7F
        return blocks.reshape(rows, -1)
    for format, type in GGUF_TYPES.items():
        if type is kind:
            return weight_like_blocks(format, rows, in_features, seed).numpy()
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return np.zeros((rows, in_features // block * size), dtype=np.uint8)
