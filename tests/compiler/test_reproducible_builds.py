"""Two builds of the same inputs are the same bytes, wherever and by whomever they are made. For NVIDIA: test_nvidia_build.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from engine.artifacts import Manifest, load_manifest
from engine.artifacts.store.store import Store
from engine.artifacts.store.transfer import export_entries
from engine.kernels.native import torch_directory


def smallest_segment(artifact: Path, manifest: Manifest) -> str:
    """Its key."""
    return min(manifest.segments, key=lambda segment: (artifact / segment.file).stat().st_size).key


@pytest.fixture(scope="module")
def rebuilt(tiny_artifact: Path, tiny_checkpoint: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_artifact` built again in another process, home, directory, time zone, locale and order of hashing.

    All is done anew but for what takes longest: the library (test_build_segments.py makes that again) and all segments but one come from
    the store.
    """
    place = tmp_path_factory.mktemp("another-user") / "far" / "away"
    checkpoint = shutil.copytree(tiny_checkpoint, place / "models" / tiny_checkpoint.name)
    export_entries(load_manifest(tiny_artifact), Store(store), Store(place / "store"))
    shutil.rmtree(place / "store" / "segment" / smallest_segment(tiny_artifact, load_manifest(tiny_artifact)))
    shutil.rmtree(place / "store" / "program")
    command = [sys.executable, "-P", "-m", "engine", "build", str(checkpoint), "-o", "out", "--store", "store", "--jobs", "1"]
    (place / "tmp").mkdir()
    elsewhere = {"HOME": str(place), "TMPDIR": str(place / "tmp"), "USER": "another", "LOGNAME": "another"}
    settings = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=place, env=os.environ | elsewhere | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 compiled" in done.stderr, done.stderr
    return place / "out"


@pytest.mark.slow
def test_two_builds_are_the_same_to_the_byte(tiny_artifact: Path, rebuilt: Path) -> None:
    names = sorted(path.relative_to(tiny_artifact).as_posix() for path in tiny_artifact.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(rebuilt).as_posix() for path in rebuilt.rglob("*") if path.is_file())
    different = [name for name in names if (tiny_artifact / name).read_bytes() != (rebuilt / name).read_bytes()]
    assert different in ([], ["manifest.json"])
    lines = [(artifact / "manifest.json").read_bytes().splitlines() for artifact in (tiny_artifact, rebuilt)]
    assert all(one == other or b'"created":' in one for one, other in zip(*lines, strict=True))
    assert load_manifest(tiny_artifact).digest == load_manifest(rebuilt).digest


def test_no_path_of_this_machine_is_in_the_code(tiny_artifact: Path) -> None:
    for name in load_manifest(tiny_artifact).code_files:
        content = (tiny_artifact / name).read_bytes()
        for place in (ROOT, torch_directory().parent, Path.home(), tiny_artifact.parent):
            assert str(place).encode() not in content, (name, place)
        assert b"/tmp/" not in content, name
