"""Hugging Face directories: whole ones are read bit for bit, broken ones are named before anything is built on them."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_checkpoints import write_random_checkpoint
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError, EngineError, UnsupportedModelError
from engine.models.open import open_checkpoint
from engine.models.storage.safetensors_header import read_header


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_random_checkpoint("llama", tmp_path / "tiny-llama", num_hidden_layers=2)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    directory = write_random_checkpoint("llama", tmp_path / "sharded", num_hidden_layers=2, max_shard_size="100KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    return directory


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_every_tensor_as_it_is_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    directory = write_random_checkpoint("qwen3", tmp_path / "model", dtype=dtype)
    checkpoint = open_checkpoint(str(directory))
    stored = load_file(directory / "model.safetensors")
    format = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    assert {info.format for info in checkpoint.parameters.values()} == {format}
    assert checkpoint.name == "model"
    query = checkpoint.read("layers.1.attention.q.weight")
    assert query.format == format
    assert torch.equal(query.data, stored["model.layers.1.self_attn.q_proj.weight"])
    assert torch.equal(checkpoint.read("embed.weight").data, stored["model.embed_tokens.weight"])


def test_shards_are_one_checkpoint(sharded: Path, tmp_path: Path) -> None:
    whole = open_checkpoint(str(write_random_checkpoint("llama", tmp_path / "whole", num_hidden_layers=2)))
    checkpoint = open_checkpoint(str(sharded))
    assert checkpoint.parameters == whole.parameters
    assert all(torch.equal(checkpoint.read(name).data, whole.read(name).data) for name in whole.parameters)


def test_what_was_read_belongs_to_the_reader(whole: Path) -> None:
    checkpoint = open_checkpoint(str(whole))
    checkpoint.read("norm.weight").data.zero_()
    assert bool(checkpoint.read("norm.weight").data.any())


def test_tensors_that_carry_nothing_are_passed_over(whole: Path) -> None:
    edit(whole / "model.safetensors", lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)}))
    assert open_checkpoint(str(whole)).spec.num_layers == 2


def test_missing_and_unused_tensors_are_named(whole: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(60)
        tensors["adapter.weight"] = torch.zeros(1)

    edit(whole / "model.safetensors", change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(whole))
    unused, missing = str(caught.value).splitlines()[1:3]
    assert unused.endswith("no place for: adapter.weight, model.layers.0.self_attn.q_proj.bias")
    assert missing.endswith("missing: model.layers.1.mlp.up_proj.weight, lm_head.weight")


def test_a_wrong_shape_is_named_with_both_shapes(whole: Path) -> None:
    edit(whole / "model.safetensors", lambda tensors: tensors.update({"model.norm.weight": torch.zeros(61)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[61\]; the configuration implies \[60\]"):
        open_checkpoint(str(whole))


def test_a_dtype_without_a_format_is_named(whole: Path) -> None:
    edit(whole / "model.safetensors", lambda tensors: tensors.update({"model.norm.weight": torch.zeros(60, dtype=torch.float64)}))
    with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight is stored as F64"):
        open_checkpoint(str(whole))


class TestTying:
    @pytest.fixture
    def tied(self, tmp_path: Path) -> Path:
        return write_random_checkpoint("llama", tmp_path / "tied", num_hidden_layers=1, tie_word_embeddings=True)

    def test_one_matrix_under_the_embedding_s_name(self, tied: Path) -> None:
        checkpoint = open_checkpoint(str(tied))
        assert checkpoint.spec.head.tied
        assert "head.weight" not in checkpoint.parameters

    def test_one_matrix_under_the_head_s_name(self, tied: Path) -> None:
        edit(tied / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
        stored = load_file(tied / "model.safetensors")["lm_head.weight"]
        assert torch.equal(open_checkpoint(str(tied)).read("embed.weight").data, stored)

    def test_the_same_matrix_twice(self, tied: Path) -> None:
        edit(tied / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
        checkpoint = open_checkpoint(str(tied))
        assert checkpoint.spec.head.tied
        assert "head.weight" not in checkpoint.parameters

    def test_two_different_matrices_are_two(self, tied: Path) -> None:
        """As in transformers, which believes the weights."""
        edit(tied / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
        checkpoint = open_checkpoint(str(tied))
        assert not checkpoint.spec.head.tied
        assert torch.equal(checkpoint.read("head.weight").data, checkpoint.read("embed.weight").data + 1)


class TestDamage:
    def test_a_file_cut_short_anywhere_says_so(self, whole: Path) -> None:
        path = whole / "model.safetensors"
        content = path.read_bytes()
        (header_size,) = struct.unpack("<Q", content[:8])
        for cut in (0, 7, 8, 9, 8 + header_size // 2, 8 + header_size, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:cut])
            with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
                open_checkpoint(str(whole))
            assert caught.value.hint is not None

    def test_a_truncated_file_is_described_in_bytes(self, whole: Path) -> None:
        path = whole / "model.safetensors"
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size - 100)
        with pytest.raises(CheckpointError, match=f"should end at byte {size}, but the file has {size - 100} bytes"):
            open_checkpoint(str(whole))

    def test_bytes_past_the_end_are_damage_too(self, whole: Path) -> None:
        with (whole / "model.safetensors").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(CheckpointError, match="its tensors end at byte"):
            open_checkpoint(str(whole))

    def test_flipped_bits_in_the_header_raise_nothing_but_our_errors(self, whole: Path) -> None:
        path = whole / "model.safetensors"
        content = bytearray(path.read_bytes())
        (header_size,) = struct.unpack("<Q", content[:8])
        dice = random.Random(0)
        refused = 0
        for _ in range(300):
            position, bit = dice.randrange(8 + header_size), 1 << dice.randrange(8)
            content[position] ^= bit
            path.write_bytes(content)
            try:
                open_checkpoint(str(whole))
            except EngineError:
                refused += 1
            content[position] ^= bit
        # What survives is a flipped space in the header's padding or a changed "__metadata__".
        assert refused > 280

    @pytest.mark.parametrize(
        ("header", "named"),
        [
            (b"[]", "header"),
            (b"{", "header"),
            (b'{"a": 1}', "header"),
            (b'{"a": {"dtype": "F32", "shape": [2]}}', "data_offsets"),
            (b'{"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}', "F31"),
            (b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "-2"),
            (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "needs 12 bytes; its offsets give it 8"),
            (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', "needs 8 bytes"),
            (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "begins at byte"),
            (b"[" * 100_000, "header"),
        ],
    )
    def test_headers_that_cannot_be(self, header: bytes, named: str, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        with pytest.raises(CheckpointError, match=named):
            read_header(path)

    def test_a_missing_shard_is_named(self, sharded: Path) -> None:
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(CheckpointError, match=shard.name):
            open_checkpoint(str(sharded))

    def test_an_index_that_names_a_tensor_its_shard_does_not_have(self, sharded: Path) -> None:
        index = json.loads((sharded / "model.safetensors.index.json").read_text())
        first, *_, last = sorted(set(index["weight_map"].values()))
        name = next(name for name, shard in index["weight_map"].items() if shard == first)
        index["weight_map"][name] = last
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=f"{name} in {last}, which does not have it"):
            open_checkpoint(str(sharded))

    @pytest.mark.parametrize("weight_map", [{"a": "../../secrets.safetensors"}, {"a": 3}, ["a"], None])
    def test_an_index_that_cannot_be(self, weight_map: object, sharded: Path) -> None:
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match="weight_map"):
            open_checkpoint(str(sharded))

    def test_a_file_that_shrinks_after_it_was_opened(self, whole: Path) -> None:
        checkpoint = open_checkpoint(str(whole))
        with (whole / "model.safetensors").open("r+b") as file:
            file.truncate(2000)
        with pytest.raises(CheckpointError, match=r"ended \d+ bytes early"):
            checkpoint.read("norm.weight")


class TestConfig:
    @pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
    def test_a_damaged_config_is_named(self, content: str, whole: Path) -> None:
        (whole / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            open_checkpoint(str(whole))

    def test_a_missing_config_is_named(self, whole: Path) -> None:
        (whole / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            open_checkpoint(str(whole))

    def test_a_config_of_another_model(self, whole: Path) -> None:
        config = json.loads((whole / "config.json").read_text())
        (whole / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 20}))
        with pytest.raises(CheckpointError, match=r"input_layernorm\.weight, .* and 152 more"):
            open_checkpoint(str(whole))
