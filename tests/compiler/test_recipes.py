"""Weights that cannot become what a recipe wants."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import write_gguf
from random_checkpoints import write_random_checkpoint
from safetensors.torch import load_file, save_file
from weight_blocks import GGUF_TYPES

from engine.compiler import recipes
from engine.compiler.recipes import make
from engine.compiler.trace import trace
from engine.compiler.weight_formats import choose_formats
from engine.compiler.weights_plan import PackedWeight, plan_weights
from engine.errors import CheckpointError
from engine.kernels.linear.packed import Layout, packed_shape
from engine.models.open import open_checkpoint
from engine.models.storage.gguf_header import read_gguf
from engine.passes import pipeline

TENSOR = "model.layers.0.mlp.up_proj.weight"


def quantized(directory: Path, value: float, format: str) -> torch.Tensor:
    """The first layer's up projection with one value replaced."""
    tensors = load_file(directory / "model.safetensors")
    tensors[TENSOR][7, 9] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(directory))
    (source,) = (name for name in checkpoint.parameters if checkpoint.tensors_of(name) == (TENSOR,))
    shape = checkpoint.parameters[source].shape
    weight = PackedWeight(name="up", dtype="uint8", shape=shape, format=format, sources=(source,), recipe=(f"quantize:{format}",))
    return make(weight, checkpoint)


@pytest.mark.parametrize("format", ["q8_0", "i4_g32", "i6_g32", "fp8_channel"])
@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_a_value_that_is_no_number_is_named(format: str, value: float, shown: str, tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=f"{TENSOR} cannot be quantized: row 7, column 9 is {shown}") as raised:
        quantized(directory, value, format)
    assert raised.value.hint


def test_values_beyond_what_a_scale_holds_are_named(tmp_path: Path) -> None:
    directory = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=rf"{TENSOR} cannot be quantized: values up to 1e\+09 are beyond what q8_0 holds"):
        quantized(directory, 1e9, "q8_0")


def test_the_bands_of_a_weight_are_made_by_themselves(tmp_path: Path) -> None:
    """Each is what it would be alone: kept where the checkpoint holds its format, quantized where not."""
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }
    plain = write_random_checkpoint("llama", tmp_path / "model", **sizes)
    path = write_gguf(plain, tmp_path / "model.gguf", quantization=lambda tensor: "Q6_K" if "attn_v" in tensor else "Q4_K")
    checkpoint = open_checkpoint(str(path))
    stored = {name: info.format for name, info in checkpoint.parameters.items()}
    sources = {f"layers.0.attention.{name}.weight": format for name, format in {"q": "q4_k", "k": "q4_k", "v": "i5_g32"}.items()}

    def planned(disabled: tuple[str, ...]) -> dict[str, PackedWeight]:
        module = trace(checkpoint.spec, block_size=32, kv_dtype="float32")
        passes = pipeline.pipeline(choose_formats(checkpoint, "int4"), disabled)
        pipeline.run(module.graph, passes)
        return {weight.name: weight for weight in plan_weights(module.graph, stored)}

    merged, apart = planned(())["layers.0.attention.q+k+v.weight"], planned(("merge_sibling_linears",))
    assert merged.sources == tuple(sources)
    assert merged.recipe == ("quantize:q4_k+q4_k+i5_g32", "pack", "concat_flat")
    assert {source: apart[source].format for source in sources} == sources
    assert torch.equal(make(merged, checkpoint), torch.cat([make(apart[source], checkpoint).flatten() for source in sources]))


@pytest.mark.parametrize("layout", ["panels", "rows"])
@pytest.mark.parametrize("stored", ["F16", "Q4_K"])
def test_what_is_packed_some_rows_at_a_time_is_the_same(
    stored: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are no whole number of such parts, nor of panels."""
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    plain = write_random_checkpoint("llama", tmp_path / "model", num_hidden_layers=1, **sizes)
    checkpoint = open_checkpoint(str(write_gguf(plain, tmp_path / "model.gguf", quantization=stored)))
    format = "q4_k" if stored == "Q4_K" else "i6_g32"
    rows, columns = checkpoint.parameters["embed.weight"].shape
    assert rows % 16
    weight = PackedWeight(
        name="embed.weight",
        dtype="uint8",
        shape=packed_shape(format, rows, columns, layout),
        format=format,
        sources=("embed.weight",),
        recipe=(*([] if stored == "Q4_K" else [f"quantize:{format}"]), "pack" if layout == "panels" else "pack_rows"),
    )
    whole = make(weight, checkpoint)
    monkeypatch.setattr(recipes, "_WEIGHTS_AT_ONCE", 48 * columns)
    assert rows > 3 * 48
    assert torch.equal(make(weight, checkpoint), whole)


@pytest.mark.parametrize(
    ("format", "byte", "value"), [("q4_k", 0, b"\x00\x7c"), ("q6_k", 208, b"\x01\xfe"), ("q4_0", 0, b"\x00\xfc"), ("mxfp4", 0, b"\xff")]
)
def test_a_scale_that_is_no_number_is_named(format: str, byte: int, value: bytes, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 1,
    }
    path = write_gguf(
        write_random_checkpoint("llama", tmp_path / "model", **sizes), tmp_path / "model.gguf", quantization=GGUF_TYPES[format].name
    )
    checkpoint = open_checkpoint(str(path))
    weight = PackedWeight(name="up", dtype="uint8", shape=(0,), format=format, sources=("layers.0.mlp.up.weight",), recipe=("pack",))
    tensor = read_gguf(path).tensors["blk.0.ffn_up.weight"]
    row = tensor.size // 256
    with path.open("r+b") as file:
        file.seek(tensor.offset + 3 * row + byte)
        file.write(value)
    with pytest.raises(CheckpointError, match=r"tensor blk\.0\.ffn_up\.weight is damaged: row 3: the scale of block 0 is not") as raised:
        make(weight, checkpoint)
    assert raised.value.hint
