"""Checkpoints in published schemes, made of random ones, and the values that each stands for.

GPTQ and AWQ by their formulas; compressed-tensors and gpt-oss's MXFP4 by their own libraries.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
TOKEN_ACTIVATIONS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
TOKEN_WEIGHTS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
"""What a scheme called W8A8 says."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Scheme(NamedTuple):
    """config: of config.json. make: the tensors of a matrix, by what they are called behind its module's name, and its float32 values."""

    config: dict[str, Any]
    make: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def write_quantized(plain: Path, directory: Path, scheme: Scheme) -> dict[str, Tensor]:
    """Writes the checkpoint with every matrix of its layers in the scheme. Returns what each stands for."""
    tensors, expected = {}, {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        parts, expected[name] = scheme.make(tensor)
        tensors |= {f"{name.removesuffix('weight')}{part}": data.contiguous() for part, data in parts.items()}
    directory.mkdir()
    for path in plain.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "config.json":
            (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": scheme.config}))
    save_file(tensors, directory / "model.safetensors")
    return expected


def gptq(*, bits: int = 4, group: int = 128, version: str = "gptq", act_order: str = "", dtype: torch.dtype = torch.float16) -> Scheme:
    """act_order: "shared" by matrices of as many columns, "own" of each, "uneven" groups; empty for none."""

    def make(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        size = columns if group == -1 else group
        seed = columns if act_order == "shared" else int(weight.abs().sum() * 1000)
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed)) if act_order else torch.arange(columns)
        g_idx = torch.empty(columns, dtype=torch.int32)
        g_idx[order] = (torch.arange(columns) // size).to(torch.int32)
        if act_order == "uneven":
            g_idx[order[0]] = 1
        codes, zeros, scales = _quantized(weight, g_idx, bits, dtype)
        stored = zeros if version == "gptq_v2" else zeros - 1 & (1 << bits) - 1
        parts = {"qweight": _packed(codes.T, bits, 0), "qzeros": _packed(stored.T, bits, 1), "scales": scales.T, "g_idx": g_idx}
        return parts, (codes - zeros[:, g_idx]).float() * scales.float()[:, g_idx]

    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": bool(act_order),
        "sym": False,
        "checkpoint_format": version,
    }
    return Scheme(config, make)


def awq(*, group: int = 128, version: str = "gemm") -> Scheme:
    def make(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        g_idx = torch.arange(weight.shape[1]) // group
        codes, zeros, scales = _quantized(weight, g_idx, 4, torch.float16)

        def in_order(rows: Tensor) -> Tensor:
            return _packed(rows.unflatten(1, (-1, 8))[:, :, AWQ_ORDER].flatten(1), 4, 1)

        parts = {"qweight": in_order(codes.T), "qzeros": in_order(zeros.T), "scales": scales.T}
        if version == "gemv":  # along inputs, in their order; as wide as AutoAWQ rounds it up
            padding = -zeros.shape[1] % (8 * max(128 // group, 1))
            padded = [torch.nn.functional.pad(part, (0, padding)) for part in (zeros, scales)]
            parts = {"qweight": _packed(codes, 4, 1), "qzeros": _packed(padded[0], 4, 1), "scales": padded[1]}
        return parts, (codes - zeros[:, g_idx]).float() * scales.float()[:, g_idx]

    return Scheme({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": version}, make)


def compressed(format: str, inputs: dict[str, Any] | None = None, **weights: Any) -> Scheme:
    """weights, and inputs of activations: as compressed-tensors' QuantizationArgs has them."""
    arguments = QuantizationArgs(**weights)
    scheme, library = QuantizationScheme(targets=["Linear"], weights=arguments), BaseCompressor.get_value_from_registry(format)

    def make(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        group = arguments.group_size or columns
        g_idx = torch.arange(columns) // group
        if arguments.type == "float":
            largest = weight.abs().unflatten(1, (-1, group)).amax(2)
            scales = largest / 6 if group == 16 else (largest / 6).log2().ceil().exp2()
            state = {"weight": weight, "weight_scale": scales}
            if group == 16:
                state["weight_global_scale"] = torch.tensor([448 / float(scales.max())])
                state["weight_scale"] = scales * state["weight_global_scale"]
        else:
            half = 1 << arguments.num_bits - 1
            _, zeros, scales = _quantized(weight, g_idx, arguments.num_bits, torch.float32)
            state = {"weight": weight, "weight_scale": scales}
            if not arguments.symmetric:
                state["weight_zero_point"] = (zeros - half).to(torch.int8)
        parts = library.compress(state, scheme)
        if arguments.type == "float" and group == 16:  # the library's own values are bfloat16
            factors = parts["weight_scale"].float() / parts["weight_global_scale"]
            codes = unpack_fp4_from_uint8(parts["weight_packed"], len(weight), columns, torch.float32)
            return parts, codes * factors.repeat_interleave(16, dim=1)
        return parts, library.decompress(dict(parts), scheme)["weight"].float()

    group = {"targets": ["Linear"], "weights": arguments.model_dump(mode="json"), "input_activations": inputs}
    return Scheme(
        {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}, make
    )


def compressed_act_order(*, group: int = 128) -> Scheme:
    """pack-quantized with `actorder: group`, by its formula: the library has forgotten it."""

    def make(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        g_idx = (torch.arange(columns) // group)[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        codes, zeros, scales = _quantized(weight, g_idx.to(torch.int32), 4, torch.float32)
        parts = {"weight_packed": _packed(codes, 4, 1), "weight_scale": scales, "weight_zero_point": _packed(zeros, 4, 0)}
        parts |= {"weight_g_idx": g_idx.to(torch.int32), "weight_shape": torch.tensor(weight.shape)}
        return parts, (codes - zeros[:, g_idx]).float() * scales[:, g_idx]

    return Scheme({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}, "ignore": ["lm_head"]}, make)


def _quantized(weight: Tensor, g_idx: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """codes [N, K] and zeros [N, G] int32, scales [N, G] of `dtype`: nearest codes between the extremes of each group."""
    groups, most = int(g_idx.max()) + 1, (1 << bits) - 1
    index = g_idx.long().expand(len(weight), -1)
    low, high = (torch.zeros(len(weight), groups).scatter_reduce(1, index, weight, reduce) for reduce in ("amin", "amax"))
    scales = ((high - low) / most).to(dtype)
    zeros = (-low / scales.float()).round().clamp(0, most).to(torch.int32)
    codes = ((weight / scales.float()[:, g_idx.long()]).round() + zeros[:, g_idx.long()]).clamp(0, most).to(torch.int32)
    return codes, zeros, scales


def _packed(codes: Tensor, bits: int, dim: int) -> Tensor:
    """int32 of 32 / bits codes along a dimension, lowest bits first."""
    words = codes.to(torch.int64).unflatten(dim, (-1, 32 // bits))
    shifts = torch.arange(0, 32, bits).view(-1, *[1] * (codes.ndim - dim - 1))
    total = (words << shifts).sum(dim + 1)
    return torch.where(total >= 1 << 31, total - (1 << 32), total).to(torch.int32)


def write_mxfp4_experts(plain: Path, directory: Path, seed: int = 0) -> None:
    """Writes a random gpt-oss checkpoint as it is published, its experts' blocks drawn anew, into `directory`, and what these stand for,
    by transformers, into `plain`."""
    generator = torch.Generator().manual_seed(seed)
    values = load_file(plain / "model.safetensors")
    packed = dict(values)
    for name in [name for name in values if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = packed.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(117, 122, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    shutil.copytree(plain, directory)
    config = json.loads((plain / "config.json").read_text())
    scheme = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))
    save_file(packed, directory / "model.safetensors")
    save_file(values, plain / "model.safetensors")
