"""Writes a GGUF file of a well-known model's shape, cut to some layers, with random weights: what speed needs, without the download.

    python benchmarks/random_gguf.py qwen3-30b-a3b --layers 12 --tokenizer FILE.gguf -o qwen3-moe.gguf

The same file is for Engine and for llama.cpp. Weights are random blocks whose scales keep activations near 1; answers mean nothing.
With --no-weights they are a hole in the file: for what reads its header alone.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model. matrices: of a layer, by name without `blk.N.`; vectors likewise, and routers, all float32: 1, or 0 for biases.

    keys: without the architecture's name. type: of matrices whose rows are whole blocks of it, of others Q8_0; head: of the last one.
    dense: a layer's matrices in place of those of experts, in as many of the first layers as `leading_dense_block_count` says.
    """

    architecture: str
    hidden: int
    keys: dict[str, Any]
    matrices: dict[str, tuple[int, ...]]
    vectors: dict[str, tuple[int, ...]]
    type: Type
    head: Type = Type.Q6_K
    dense: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _experts(count: int, hidden: int, size: int) -> dict[str, tuple[int, ...]]:
    return {
        "ffn_gate_exps.weight": (count, size, hidden),
        "ffn_up_exps.weight": (count, size, hidden),
        "ffn_down_exps.weight": (count, hidden, size),
    }


def _mlp(hidden: int, size: int, suffix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        f"ffn_gate{suffix}.weight": (size, hidden),
        f"ffn_up{suffix}.weight": (size, hidden),
        f"ffn_down{suffix}.weight": (hidden, size),
    }


def _attention(hidden: int, heads: int, kv_heads: int, dim: int) -> dict[str, tuple[int, ...]]:
    return {
        "attn_q.weight": (heads * dim, hidden),
        "attn_k.weight": (kv_heads * dim, hidden),
        "attn_v.weight": (kv_heads * dim, hidden),
        "attn_output.weight": (hidden, heads * dim),
    }


def _keys(hidden: int, heads: int, kv_heads: int, dim: int, experts: int, chosen: int, size: int) -> dict[str, Any]:
    return {
        "context_length": 32768,
        "embedding_length": hidden,
        "feed_forward_length": size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1000000.0,
        "expert_count": experts,
        "expert_used_count": chosen,
        "expert_feed_forward_length": size,
    }


SHAPES = {
    "qwen3-30b-a3b": Shape(
        architecture="qwen3moe",
        hidden=2048,
        keys=_keys(2048, 32, 4, 128, 128, 8, 768),
        matrices=_attention(2048, 32, 4, 128) | _experts(128, 2048, 768),
        vectors={
            "attn_norm.weight": (2048,),
            "ffn_norm.weight": (2048,),
            "attn_q_norm.weight": (128,),
            "attn_k_norm.weight": (128,),
            "ffn_gate_inp.weight": (128, 2048),
        },
        type=Type.Q4_K,
    ),
    "gpt-oss-20b": Shape(
        architecture="gpt-oss",
        hidden=2880,
        keys=_keys(2880, 64, 8, 64, 32, 4, 2880) | {"attention.sliding_window": 128},
        matrices=_attention(2880, 64, 8, 64) | _experts(32, 2880, 2880),
        vectors={
            "attn_norm.weight": (2880,),
            "post_attention_norm.weight": (2880,),
            "attn_q.bias": (4096,),
            "attn_k.bias": (512,),
            "attn_v.bias": (512,),
            "attn_output.bias": (2880,),
            "attn_sinks.weight": (64,),
            "ffn_gate_inp.weight": (32, 2880),
            "ffn_gate_inp.bias": (32,),
            "ffn_gate_exps.bias": (32, 2880),
            "ffn_up_exps.bias": (32, 2880),
            "ffn_down_exps.bias": (32, 2880),
        },
        type=Type.MXFP4,
        head=Type.Q8_0,
    ),
    "deepseek-v2-lite": Shape(
        architecture="deepseek2",
        hidden=2048,
        keys=_keys(2048, 16, 1, 576, 64, 6, 1408)
        | {
            "attention.value_length": 512,
            "attention.q_lora_rank": 0,  # said, since llama.cpp knows models without by their number of layers
            "attention.kv_lora_rank": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
            "rope.freq_base": 10000.0,
            "feed_forward_length": 10944,
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_weights_scale": 1.0,
        },
        matrices={
            "attn_q.weight": (16 * 192, 2048),
            "attn_kv_a_mqa.weight": (576, 2048),
            "attn_k_b.weight": (16, 512, 128),
            "attn_v_b.weight": (16, 128, 512),
            "attn_output.weight": (2048, 2048),
        }
        | _experts(64, 2048, 1408)
        | _mlp(2048, 2 * 1408, "_shexp"),
        dense=_mlp(2048, 10944),
        vectors={
            "attn_norm.weight": (2048,),
            "ffn_norm.weight": (2048,),
            "attn_kv_a_norm.weight": (512,),
            "ffn_gate_inp.weight": (64, 2048),
        },
        type=Type.Q4_K,
    ),
    "glm-4.7-flash": Shape(
        architecture="deepseek2",
        hidden=2048,
        keys=_keys(2048, 20, 1, 576, 64, 4, 1536)
        | {
            "attention.value_length": 512,
            "attention.q_lora_rank": 768,
            "attention.kv_lora_rank": 512,
            "attention.key_length_mla": 256,
            "attention.value_length_mla": 256,
            "rope.dimension_count": 64,
            "feed_forward_length": 10240,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,  # sigmoid
            "expert_weights_norm": True,
            "expert_weights_scale": 1.8,
        },
        matrices={
            "attn_q_a.weight": (768, 2048),
            "attn_q_b.weight": (20 * 256, 768),
            "attn_kv_a_mqa.weight": (576, 2048),
            "attn_k_b.weight": (20, 512, 192),
            "attn_v_b.weight": (20, 256, 512),
            "attn_output.weight": (2048, 20 * 256),
        }
        | _experts(64, 2048, 1536)
        | _mlp(2048, 1536, "_shexp"),
        dense=_mlp(2048, 10240),
        vectors={
            "attn_norm.weight": (2048,),
            "ffn_norm.weight": (2048,),
            "attn_q_a_norm.weight": (768,),
            "attn_kv_a_norm.weight": (512,),
            "ffn_gate_inp.weight": (64, 2048),
            "exp_probs_b.bias": (64,),
        },
        type=Type.Q4_K,
    ),
}


def write(shape: Shape, layers: int, tokenizer: Path, output: Path, *, weights: bool = True) -> None:
    """Write the file. tokenizer: a GGUF file whose tokenizer it gets; its vocabulary becomes the model's. weights: else there is a hole."""
    taken = _tokenizer(tokenizer)
    vocabulary = len(taken["tokenizer.ggml.tokens"][0])
    tensors = list(_tensors(shape, layers, vocabulary))
    writer = gguf.GGUFWriter(output, shape.architecture)
    for key, value in {**shape.keys, "block_count": layers}.items():
        _add(writer, f"{shape.architecture}.{key}", value)
    for key, (value, kind, items) in taken.items():
        writer.add_key_value(key, value, kind, items)
    for name, size, type in tensors:
        dtype = np.dtype("float32" if type is Type.F32 else "uint8")
        writer.add_tensor_info(name, _stored_shape(size, type), dtype, _bytes(size, type), type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(_SEED)
    for name, size, type in tensors if weights else ():
        writer.write_tensor_data(_values(name, size, type, generator))
    writer.close()
    if not weights:
        aligned = [-(-count // writer.data_alignment) * writer.data_alignment for count in (output.stat().st_size, *_sizes(tensors))]
        os.truncate(output, sum(aligned))


def _tensors(shape: Shape, layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...], Type]]:
    small = Type.Q8_0 if shape.type is Type.MXFP4 else shape.type
    yield "token_embd.weight", (vocabulary, shape.hidden), small
    for layer in range(layers):
        is_dense = layer < shape.keys.get("leading_dense_block_count", 0)
        for name, size in shape.vectors.items():
            if not (is_dense and ("inp" in name or "exp" in name)):
                yield f"blk.{layer}.{name}", size, Type.F32
        kept = {name: size for name, size in shape.matrices.items() if not (is_dense and "exp" in name)}
        for name, size in (kept | (shape.dense if is_dense else {})).items():
            wanted = shape.type if "exps" in name else small
            yield f"blk.{layer}.{name}", size, Type.Q8_0 if size[-1] % gguf.GGML_QUANT_SIZES[wanted][0] else wanted
    yield "output_norm.weight", (shape.hidden,), Type.F32
    yield "output.weight", (vocabulary, shape.hidden), shape.head


def _stored_shape(size: tuple[int, ...], type: Type) -> Sequence[int]:
    if type is Type.F32:
        return size
    block, block_bytes = gguf.GGML_QUANT_SIZES[type]
    return (*size[:-1], size[-1] // block * block_bytes)


def _bytes(size: tuple[int, ...], type: Type) -> int:
    return int(np.prod(_stored_shape(size, type))) * (4 if type is Type.F32 else 1)


def _sizes(tensors: Sequence[tuple[str, tuple[int, ...], Type]]) -> Iterator[int]:
    return (_bytes(size, type) for _, size, type in tensors)


def _values(name: str, size: tuple[int, ...], type: Type, generator: np.random.Generator) -> np.ndarray:
    if type is Type.F32:
        if len(size) == 2 and name.endswith("weight"):
            return generator.standard_normal(size, dtype=np.float32) * np.float32(size[-1] ** -0.5)
        return np.full(size, 1.0 if name.endswith("norm.weight") else 0.0, dtype=np.float32)
    block, block_bytes = gguf.GGML_QUANT_SIZES[type]
    blocks = generator.integers(0, 256, (*size[:-1], size[-1] // block, block_bytes), dtype=np.uint8)
    spread = size[-1] ** -0.5
    match type:
        case Type.Q4_K:  # d, dmin, scales, codes
            blocks[..., :4] = np.array([spread / 200, spread / 27], dtype=np.float16).view(np.uint8)
        case Type.Q6_K:  # codes, scales, d
            blocks[..., -18:-2] = 16
            blocks[..., -2:] = np.array([spread / 300], dtype=np.float16).view(np.uint8)
        case Type.Q8_0:
            blocks[..., :2] = np.array([spread / 74], dtype=np.float16).view(np.uint8)
        case Type.MXFP4:
            blocks[..., 0] = 127 + int(np.round(np.log2(spread / 3)))
    return blocks.reshape(_stored_shape(size, type))


def _tokenizer(path: Path) -> dict[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]:
    fields = gguf.GGUFReader(path).fields
    return {
        name: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for name, field in fields.items()
        if name.startswith("tokenizer.")
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_uint32(key, value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/random_gguf.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("shape", choices=[*SHAPES])
    parser.add_argument("--layers", type=int, required=True, metavar="N", help="how many of the model's layers to write")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="a GGUF file whose tokenizer and vocabulary it gets")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--no-weights", action="store_true", help="a header alone, and a hole where weights would be")
    options = parser.parse_args()
    write(SHAPES[options.shape], options.layers, options.tokenizer, options.output, weights=not options.no_weights)


if __name__ == "__main__":
    main()
