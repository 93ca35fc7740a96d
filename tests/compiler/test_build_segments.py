"""Compile time depends on the kinds of layer, not on their number or their weights."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from held_formats import held_formats
from random_checkpoints import write_random_checkpoint

from engine.artifacts import load_manifest, verify
from engine.compiler.build import build
from engine.compiler.options import BuildOptions


def test_60_layers_compile_the_segments_of_3(tiny_artifact: Path, store: Path, tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint("llama", tmp_path / "checkpoint", num_hidden_layers=60)
    summary = build(BuildOptions(model=str(checkpoint), output=tmp_path / "artifact", store=store))
    assert (summary.segments_compiled, summary.segments_reused) == (0, 3)
    manifests = [load_manifest(tiny_artifact), load_manifest(tmp_path / "artifact")]
    assert [segment.key for segment in manifests[0].segments] == [segment.key for segment in manifests[1].segments]
    assert [[segment.calls for segment in manifest.segments] for manifest in manifests] == [[1, 2, 1], [1, 59, 1]]


def test_other_weights_of_the_same_architecture_compile_nothing(store: Path, tmp_path: Path) -> None:
    summaries = []
    for seed in (1, 2):
        checkpoint = write_random_checkpoint("qwen3", tmp_path / f"checkpoint-{seed}", seed=seed)
        summaries.append(build(BuildOptions(model=str(checkpoint), output=tmp_path / f"artifact-{seed}", store=store)))
    assert summaries[1].segments_compiled == 0
    assert summaries[1].segments_reused == summaries[0].segments_compiled + summaries[0].segments_reused == 3


@pytest.mark.parametrize(
    ("quantize", "formats"),
    [
        ("int8", {"q8_0"}),
        # Rows of the tiny model are no multiple of 64.
        ("int4", {"i4_g32", "i5_g32", "i6_g32"}),
    ],
)
def test_quantized_layers_are_one_segment_too(quantize: str, formats: set[str], store: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    build(BuildOptions(model=str(tiny_checkpoint), output=tmp_path / "artifact", store=store, quantize=quantize))
    manifest = load_manifest(tmp_path / "artifact")
    assert [segment.calls for segment in manifest.segments] == [1, 2, 1]
    assert set(held_formats(manifest).values()) - {"f32"} == formats


def test_everything_anew_with_paths_as_people_type_them(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_checkpoint: Path, compiled_kernels: Path
) -> None:
    """Relative to a directory with a space in its name: compilers do not run in it, and not all of them know of quotes. Temporary files
    are in such a one too.

    Along with it: the debug dump shows every step, nothing else is left lying about, and the kernel library is the same to the byte as
    one from sources in another place.
    """
    place = tmp_path / "My Models"
    shutil.copytree(tiny_checkpoint, place / "model")
    command = [
        str(Path(sys.executable).with_name("engine")),
        "build",
        "model",
        "-o",
        "artifact",
        "--store",
        "store",
        "--debug-dump",
        "dump",
    ]
    temporary = tmp_path / "My Temporary Files"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["artifact", "dump", "model", "store"]
    manifest, dump = load_manifest(place / "artifact"), place / "dump"
    verify(place / "artifact", manifest)
    if not request.config.getoption("--kernel-flags"):
        assert (place / "artifact" / manifest.kernel_library).read_bytes() == compiled_kernels.read_bytes()
    assert "aten.linear.default" in (dump / "graphs" / "00-traced.py").read_text()
    assert "engine.linear_dense" in (dump / "graphs" / "after-assign_weight_kernels.py").read_text()
    assert any("engine.attention" in path.read_text() for path in (dump / "bytecode").glob("*.py"))
    keys = {segment.key for segment in manifest.segments}
    assert {path.name for path in (dump / "segments").iterdir()} == keys
    assert all(list((dump / "segments" / key).glob("*.cpp")) for key in keys)
