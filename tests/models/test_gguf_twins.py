"""The GGUF files that tests compare with: every architecture is written, whole, with llama.cpp's transforms."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_twins import twins, write_twins
from safetensors.numpy import load_file


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.asarray(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def sorted_matrices(weights: dict[str, np.ndarray]) -> np.ndarray:
    def is_norm(key: str) -> bool:
        return "norm" in key.rpartition(".")[0].rpartition(".")[2]

    matrices = [weight.ravel() for key, weight in weights.items() if weight.ndim > 1 and min(weight.shape) > 1 and not is_norm(key)]
    return np.sort(np.concatenate(matrices))


@pytest.mark.parametrize("name", twins())
def test_a_twin_has_all_of_the_weights(name: str, tmp_path: Path) -> None:
    checkpoint, path = write_twins(name, tmp_path / "twins")
    expected = {key: weight for key, weight in load_file(checkpoint / "model.safetensors").items() if ".act_fn." not in key}
    actual = {key: weight for key, weight in tensors(path).items() if not key.startswith("rope_")}
    assert sum(weight.size for weight in actual.values()) == sum(weight.size for weight in expected.values())
    # Only the offset of norms changes a value: the matrices hold the same numbers, in another order.
    np.testing.assert_array_equal(sorted_matrices(actual), sorted_matrices(expected))


def test_norms_of_gemma_carry_their_offset(tmp_path: Path) -> None:
    checkpoint, path = write_twins("gemma2", tmp_path / "twins")
    weights = load_file(checkpoint / "model.safetensors")
    written = tensors(path)
    expected = weights["model.layers.1.pre_feedforward_layernorm.weight"] + np.float32(1)
    np.testing.assert_array_equal(written["blk.1.ffn_norm.weight"], expected)
    np.testing.assert_array_equal(written["blk.1.attn_q.weight"], weights["model.layers.1.self_attn.q_proj.weight"])


def test_rows_of_llama_are_interleaved_within_their_heads(tmp_path: Path) -> None:
    checkpoint, path = write_twins("granite", tmp_path / "twins")
    rows = load_file(checkpoint / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    written = tensors(path)["blk.0.attn_k.weight"]
    # Heads of 24 rows: row 0, row 12, row 1, row 13 ...; the second head follows.
    np.testing.assert_array_equal(written[:4], rows[[0, 12, 1, 13]])
    np.testing.assert_array_equal(written[24:26], rows[[24, 36]])


def test_groups_of_falcon_become_queries_keys_and_values(tmp_path: Path) -> None:
    checkpoint, path = write_twins("falcon-grouped", tmp_path / "twins")
    rows = load_file(checkpoint / "model.safetensors")["transformer.h.0.self_attention.query_key_value.weight"]
    written = tensors(path)["blk.0.attn_qkv.weight"]
    # Two groups of two queries, a key and a value, 24 rows each.
    queries, keys, values = written[:96], written[96:144], written[144:]
    np.testing.assert_array_equal(queries, np.concatenate([rows[:48], rows[96:144]]))
    np.testing.assert_array_equal(keys, np.concatenate([rows[48:72], rows[144:168]]))
    np.testing.assert_array_equal(values, np.concatenate([rows[72:96], rows[168:]]))


def test_the_matrices_may_be_quantized(tmp_path: Path) -> None:
    _, path = write_twins("cohere-qk-norm", tmp_path / "twins", quantization="Q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q_norm.weight"] == "F32"
