"""GGUF files against the Hugging Face checkpoints that they were made from."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from loading import load_decoder, to_float32
from paged_runner import PagedRunner
from random_checkpoints import write_random_checkpoint
from reference_attention import use_reference_attention
from tokenizers import Tokenizer
from weight_blocks import GGUF_TYPES

from engine.errors import CheckpointError, EngineError, UnsupportedModelError
from engine.models.architectures.registry import GGUF
from engine.models.decoder import constants
from engine.models.open import open_checkpoint
from engine.models.parts.norm import NormSpec
from engine.models.parts.rope import RopeSpec
from engine.models.spec import ModelSpec
from engine.models.stored_values import dequantize

# Rows of whole groups of 32, which quantized types need.
GROUPED: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
# Of the larger blocks of K-quants.
BLOCKS_OF_256: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3": ("llama3", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4, "num_hidden_layers": 5}),
}


@pytest.mark.parametrize("name", MODELS)
def test_same_model_as_the_directory_it_was_made_from(name: str, tmp_path: Path) -> None:
    family, overrides = MODELS[name]
    directory = write_random_checkpoint(family, tmp_path / "model", **overrides)
    expected, actual = open_checkpoint(str(directory)), open_checkpoint(str(write_gguf(directory, tmp_path / "model.gguf")))
    assert without_tables(actual.spec) == without_tables(expected.spec)
    assert actual.parameters == expected.parameters
    # Of a GGUF file's tokens, `<|endoftext|>` ends a text as well.
    assert actual.generation == dataclasses.replace(expected.generation, eos_ids=(2, 0))
    assert actual.name == "model"
    for parameter in expected.parameters:
        assert torch.equal(actual.read(parameter).data, expected.read(parameter).data), parameter
    ours, theirs = constants(actual.spec), constants(expected.spec)
    assert ours.keys() == theirs.keys()
    # Exact but for Llama 3's scaling, which GGUF rounds once more.
    assert all(torch.allclose(ours[table], theirs[table], rtol=0 if name != "llama3" else 4 * 2**-23, atol=0) for table in ours)


def without_tables(spec: ModelSpec) -> tuple[ModelSpec, list[bool]]:
    """The model without its rotary embeddings, its name, and which of its layers have one."""
    without: Any = {"rope": None}
    layers = tuple(dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, **without)) for layer in spec.layers)
    return dataclasses.replace(spec, architecture="", layers=layers), [layer.mixer.rope is not None for layer in spec.layers]


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_stored_types_are_carried_over_exactly(family: str, quantization: str, tmp_path: Path) -> None:
    directory = write_random_checkpoint(family, tmp_path / "model", **GROUPED | {"use_sliding_window": False})
    path = write_gguf(directory, tmp_path / "model.gguf", quantization=quantization)
    original, checkpoint = open_checkpoint(str(directory)), open_checkpoint(str(path))
    kind = gguf.GGMLQuantizationType[quantization]
    for parameter, info in checkpoint.parameters.items():
        loaded, source = checkpoint.read(parameter), original.read(parameter).data.numpy()
        if source.ndim == 1:
            assert info.format == loaded.format == "f32"
            continue
        assert info.format == loaded.format == quantization.lower()
        assert info.shape == source.shape
        stored = gguf.quants.quantize(source, kind)
        # Permuting rows and quantizing them commute, so even interleaved rows must be the source's own blocks.
        assert np.array_equal(loaded.data.view(torch.uint8).numpy().reshape(-1), stored.view(np.uint8).reshape(-1)), parameter


@pytest.mark.parametrize("format", sorted(GGUF_TYPES))
def test_blocks_of_every_format_are_carried_over_exactly(format: str, tmp_path: Path) -> None:
    directory = write_random_checkpoint("qwen2", tmp_path / "model", **BLOCKS_OF_256 | {"use_sliding_window": False})
    path = write_gguf(directory, tmp_path / "model.gguf", quantization=GGUF_TYPES[format].name)
    checkpoint, stored = open_checkpoint(str(path)), {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for parameter, info in checkpoint.parameters.items():
        (tensor,) = (stored[name] for name in checkpoint.tensors_of(parameter))
        loaded = checkpoint.read(parameter)
        if len(info.shape) == 2:
            assert (info.format, loaded.format, info.widened_from) == (format, format, "")
            assert np.array_equal(to_float32(loaded).numpy(), gguf.quants.dequantize(tensor.data, tensor.tensor_type))
            assert np.array_equal(loaded.data.numpy(), tensor.data)


NVFP4_SCALES = {"blk.0.ffn_up.scale": 0.3, "blk.0.ffn_up.input_scale": 7.0, "blk.1.attn_q.scale": 1e-3}


def test_nvfp4_is_carried_over_exactly(tmp_path: Path) -> None:
    directory = write_random_checkpoint("qwen2", tmp_path / "model", **BLOCKS_OF_256 | {"use_sliding_window": False})
    path = write_gguf(directory, tmp_path / "model.gguf", quantization="NVFP4", scales=NVFP4_SCALES)
    checkpoint, stored = open_checkpoint(str(path)), {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    scaled = 0
    for parameter, info in checkpoint.parameters.items():
        (name,) = checkpoint.tensors_of(parameter)
        if len(info.shape) != 2:
            continue
        loaded = checkpoint.read(parameter)
        assert (info.format, loaded.format, info.widened_from) == ("nvfp4_mul", "nvfp4_mul", "")
        expected = torch.from_numpy(gguf.quants.dequantize(stored[name].data, gguf.GGMLQuantizationType.NVFP4))
        if scale := NVFP4_SCALES.get(name.replace(".weight", ".scale")):
            scaled += 1
            assert torch.allclose(dequantize("nvfp4_mul", loaded.data), expected * scale, rtol=2.0**-22, atol=0)
        else:
            assert torch.equal(dequantize("nvfp4_mul", loaded.data), expected)
    assert scaled == 2


@pytest.mark.parametrize(("byte", "scale", "named"), [(0x80, 1.0, "scales below zero"), (1, 0.0, "the scale of the tensor is 0")])
def test_scales_of_nvfp4_that_cannot_be(byte: int, scale: float, named: str, tmp_path: Path) -> None:
    directory = write_random_checkpoint("qwen2", tmp_path / "model", **BLOCKS_OF_256 | {"use_sliding_window": False})
    path = write_gguf(directory, tmp_path / "model.gguf", quantization="NVFP4", scales={"blk.0.ffn_up.scale": scale})
    (offset,) = (int(tensor.data_offset) for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.ffn_up.weight")
    content = bytearray(path.read_bytes())
    content[offset] = byte
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=named) as raised:
        open_checkpoint(str(path)).read("layers.0.mlp.up.weight")
    assert "blk.0.ffn_up.weight" in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("quantization", ["TQ1_0", "TQ2_0"])
def test_types_without_a_kernel_are_dequantized(quantization: str, tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", **BLOCKS_OF_256)
    checkpoint = open_checkpoint(str(write_gguf(directory, tmp_path / "model.gguf", quantization=quantization)))
    original = open_checkpoint(str(directory))
    kind = gguf.GGMLQuantizationType[quantization]
    for parameter, info in checkpoint.parameters.items():
        assert info.format == "f32"
        assert info.widened_from == (quantization if len(info.shape) == 2 else "")
        source = original.read(parameter).data.numpy()
        expected = source if source.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(source, kind), kind)
        assert np.array_equal(checkpoint.read(parameter).data.numpy(), expected)


def test_a_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", **BLOCKS_OF_256)
    path = write_gguf(directory, tmp_path / "model.gguf", quantization="Q8_K")
    with pytest.raises(UnsupportedModelError, match=r"token_embd\.weight .* Q8_K") as raised:
        open_checkpoint(str(path))
    assert "IQ4_XS" in raised.value.hint


def test_a_model_in_several_files(tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model")
    whole = open_checkpoint(str(write_gguf(directory, tmp_path / "model.gguf")))
    write_gguf(directory, tmp_path / "split" / "model.gguf", split_max_tensors=10)
    parts = sorted((tmp_path / "split").iterdir())
    assert len(parts) > 2
    for part in (parts[0], parts[1], parts[-1]):
        checkpoint = open_checkpoint(str(part))
        assert (checkpoint.name, checkpoint.spec) == (whole.name, whole.spec)
        assert all(torch.equal(checkpoint.read(name).data, whole.read(name).data) for name in whole.parameters)


def _other_count(parts: list[Path]) -> None:
    """One more tensor than there are is announced."""
    key, content = b"split.tensors.count", parts[0].read_bytes()
    at = content.index(key) + len(key) + 4
    parts[0].write_bytes(content[:at] + bytes([content[at] + 1]) + content[at + 1 :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda parts: parts[1].unlink(), "of which 1 are not there: model-00002-of-00003.gguf"),
        (lambda parts: parts[0].rename(parts[0].with_name("renamed.gguf")), "its name does not say which files have the others"),
        (lambda parts: shutil.copy(parts[2], parts[1]), "part 2 of .* says that it is part 3 of 3"),
        (_other_count, "the parts of .* have 30 tensors of 31"),
        (lambda parts: parts[1].write_bytes(parts[1].read_bytes()[:-9]), "model-00002-of-00003.gguf is not a whole GGUF file"),
    ],
    ids=["missing", "renamed", "copied", "too few", "cut"],
)
def test_parts_that_do_not_fit_are_named(damage: Callable[[list[Path]], object], message: str, tmp_path: Path) -> None:
    write_gguf(write_random_checkpoint("llama", tmp_path / "model"), tmp_path / "split" / "model.gguf", split_max_tensors=10)
    damage(sorted((tmp_path / "split").iterdir()))
    first = min((tmp_path / "split").iterdir(), key=lambda path: (path.name != "renamed.gguf", path.name))
    with pytest.raises(CheckpointError, match=message) as raised:
        open_checkpoint(str(first))
    assert raised.value.hint


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("small") / "model", num_hidden_layers=1)


@pytest.mark.parametrize(
    ("metadata", "error", "named"),
    [
        ({"llama.attention.head_count": None}, CheckpointError, "attention.head_count"),
        ({"llama.attention.head_count": 5}, CheckpointError, "multiple"),
        ({"llama.block_count": 2}, CheckpointError, r"missing: blk\.1\.attn_norm\.weight"),
        ({"llama.block_count": 2**31}, CheckpointError, "block_count"),
        ({"llama.embedding_length": 64}, CheckpointError, "shape"),
        ({"llama.expert_count": 8}, CheckpointError, "expert_used_count"),
        ({"llama.expert_count": 8, "llama.expert_gating_func": 2}, UnsupportedModelError, "expert_gating_func is 2"),
        ({"llama.expert_count": 8, "llama.expert_weights_scale": 2.5}, UnsupportedModelError, "expert_weights_scale is 2.5"),
        ({"llama.attention.key_length": 20, "llama.attention.value_length": 20}, CheckpointError, "shape"),
        ({"llama.attention.value_length": 20}, UnsupportedModelError, "value_length"),
        ({"llama.rope.dimension_count": 0}, CheckpointError, "rotates 0 elements"),
        ({"llama.rope.scaling.attn_factor": 2.0}, UnsupportedModelError, "attn_factor"),
        ({"llama.logit_scale": 0.5}, UnsupportedModelError, "llama.logit_scale"),
        ({"llama.rope.scaling.type": "longrope"}, UnsupportedModelError, "longrope"),
        ({"llama.feed_forward_length": [92]}, CheckpointError, "feed_forward_length"),
        ({"split.count": 3}, CheckpointError, "one part of 3"),
        ({"general.alignment": 48}, CheckpointError, "alignment"),
    ],
)
def test_metadata_that_does_not_fit_is_named(
    metadata: dict[str, Any], error: type[Exception], named: str, small: Path, tmp_path: Path
) -> None:
    path = write_gguf(small, tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(error, match=named) as caught:
        open_checkpoint(str(path))
    assert isinstance(caught.value, EngineError)
    assert caught.value.hint


def test_the_user_may_say_that_a_key_changes_nothing(small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "model.gguf", metadata={"llama.logit_scale": 0.5})
    assert open_checkpoint(str(path), ignored=["logit_scale"]).spec == open_checkpoint(str(write_gguf(small, tmp_path / "plain.gguf"))).spec


def table(path: Path) -> RopeSpec:
    """That of a file's first layer."""
    rope = open_checkpoint(str(path)).spec.layers[0].mixer.rope
    assert rope is not None
    return rope


def test_scaling_keys_mean_what_llama_cpp_takes_them_for(small: Path, tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    linear = table(write_gguf(small, tmp_path / "linear.gguf", metadata=scaling))
    assert (linear.kind, linear.factor) == ("linear", 4.0)
    scaling |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 64}
    yarn = table(write_gguf(small, tmp_path / "yarn.gguf", metadata=scaling))
    assert (yarn.kind, yarn.factor, yarn.original_max_context, yarn.attention_factor) == ("yarn", 4.0, 64, 1.138629436111989)


def test_an_unknown_architecture_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="'mamba'") as caught:
        open_checkpoint(str(tmp_path / "model.gguf"))
    assert caught.value.hint == f"supported GGUF architectures: {', '.join(sorted(GGUF))}"
    assert {"llama", "qwen2", "qwen3", "smollm3"} <= GGUF.keys()


def test_smollm2_is_read_whole(smollm2_gguf: Path) -> None:
    checkpoint = open_checkpoint(str(smollm2_gguf))
    spec = checkpoint.spec
    assert (spec.num_layers, spec.hidden_size, spec.head.tied, spec.final) == (30, 576, True, NormSpec(eps=1e-5))
    assert {(layer.mixer.num_heads, layer.mixer.num_kv_heads, layer.mixer.rope) for layer in spec.layers} == {
        (9, 3, RopeSpec(theta=100000.0, width=64))
    }
    formats = {name: info.format for name, info in checkpoint.parameters.items()}
    assert formats["embed.weight"] == "q8_0"
    assert {formats[name] for name in formats if "attention." in name or "mlp." in name} == {"q4_1"}
    assert checkpoint.read("layers.7.mlp.down.weight").data.shape == (576, 1536 // 32 * 20)
    assert to_float32(checkpoint.read("layers.7.mlp.down.weight")).shape == (576, 1536)


def test_smollm2_knows_the_capital_of_france(smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrongly permuted matrix or rotated pair, and it would not."""
    use_reference_attention(monkeypatch)
    checkpoint = open_checkpoint(str(smollm2_gguf))
    checkpoint.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    runner = PagedRunner(load_decoder(checkpoint))
    tokens = tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n").ids
    answer: list[int] = []
    while not answer or answer[-1] not in checkpoint.generation.eos_ids:
        answer.append(int(runner.step([(0, answer[-1:] or tokens)]).argmax()))
        assert len(answer) < 20
    assert tokenizer.decode(answer) == "The capital of France is Paris."
