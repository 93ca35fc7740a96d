"""gpt-oss as it is published: the blocks of its experts are kept, and what does not fit is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import write_tiny_checkpoint
from quantized_checkpoints import write_mxfp4_experts
from safetensors.torch import load_file, save_file

from engine.compiler.weight_formats import choose_formats
from engine.errors import CheckpointError
from engine.models.open import open_checkpoint
from engine.models.stored_values import values_of

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As numbers, and as it is published."""
    directory = tmp_path_factory.mktemp("gpt-oss")
    plain = write_tiny_checkpoint("gpt_oss", directory / "plain")
    write_mxfp4_experts(plain, directory / "published")
    return plain, directory / "published"


def test_blocks_stand_for_what_transformers_makes_of_them(checkpoints: tuple[Path, Path]) -> None:
    plain, published = (open_checkpoint(str(path)) for path in checkpoints)
    assert plain.parameters.keys() == published.parameters.keys()
    blocks = {name for name, info in published.parameters.items() if info.format == "mxfp4"}
    assert blocks == {f"layers.{layer}.mlp.experts.{part}.weight" for layer in range(4) for part in ("gate", "up", "down")}
    for name in plain.parameters:
        found, expected = published.read(name), plain.read(name)
        assert torch.equal(values_of(found.format, found.data), expected.data), name


def test_they_are_computed_with_as_they_are_on_every_target(checkpoints: tuple[Path, Path]) -> None:
    published = open_checkpoint(str(checkpoints[1]))
    for formats in (choose_formats(published, "none", layout) for layout in ("panels", "rows")):
        kept = {name for name, format in formats.items() if format == "mxfp4"}
        assert len(kept) == 12


def without_scales(tensors: Tensors, name: str) -> None:
    del tensors[f"{name}_scales"]


def with_fewer_scales(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_scales"] = tensors[f"{name}_scales"][:, :, 1:].contiguous()


def with_wide_blocks(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_blocks"] = tensors[f"{name}_blocks"].flatten(2)


def with_other_numbers(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_blocks"] = tensors[f"{name}_blocks"].float()


def with_fewer_rows(tensors: Tensors, name: str) -> None:
    for part in ("blocks", "scales"):
        tensors[f"{name}_{part}"] = tensors[f"{name}_{part}"][:, 2:].contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_scales, "has no model.layers.1.mlp.experts.gate_up_proj_scales"),
        (with_fewer_scales, r"_scales is U8 \[4, 320, 2\], and the blocks are for \[4, 320, 3\]"),
        (with_wide_blocks, r"_blocks is U8 \[4, 320, 48\]"),
        (with_other_numbers, "_blocks is F32"),
        (with_fewer_rows, r"\[4, 318, 96\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    damage: Callable[[Tensors, str], None], message: str, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    for path in checkpoints[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors, "model.layers.1.mlp.experts.gate_up_proj")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(tmp_path))
    assert caught.value.hint
