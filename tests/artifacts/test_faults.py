"""Damaged, foreign and outdated artifacts: refused with the right type and a hint, before anything runs."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import edit_manifest
from patience import PATIENCE

from engine.artifacts import Target, check_machine, load_manifest
from engine.artifacts.manifest import SCHEMA_VERSION
from engine.errors import ArtifactError, MismatchError

ENGINE = Path(sys.executable).with_name("engine")


@pytest.fixture
def copy(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "copy"))


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def engine(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(ENGINE), *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE, check=False)


def serve(artifact: Path) -> "subprocess.CompletedProcess[str]":
    return engine("serve", "--artifacts", artifact, "--port", 0, "--kv-memory", "16MB")


def test_a_flipped_byte_in_a_segment(copy: Path) -> None:
    segment = copy / load_manifest(copy).segments[0].file
    flip_byte(segment, segment.stat().st_size // 2)
    done = serve(copy)
    assert done.returncode == ArtifactError.exit_code
    assert "is damaged: SHA-256" in done.stderr
    assert "hint:" in done.stderr


def test_a_flipped_byte_in_the_weights_is_found_by_verify(copy: Path) -> None:
    flip_byte(copy / "weights" / "00000.safetensors", -1)
    done = engine("verify", copy)
    assert done.returncode == ArtifactError.exit_code
    assert "00000.safetensors is damaged" in done.stderr


def test_damaged_weights_fail_the_golden_probe(copy: Path) -> None:
    weights = copy / "weights" / "00000.safetensors"
    data = bytearray(weights.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 65536] = bytes(65536)
    weights.write_bytes(data)
    done = serve(copy)
    assert done.returncode == ArtifactError.exit_code
    assert "golden probe failed" in done.stderr


@pytest.mark.parametrize("name", ["weights/00000.safetensors", "tokenizer/tokenizer.json"])
def test_a_truncated_or_missing_file(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-7])
    assert "copied incompletely" in serve(copy).stderr
    path.unlink()
    done = serve(copy)
    assert done.returncode == ArtifactError.exit_code
    assert "is missing" in done.stderr


def test_another_schema_version(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest.update(schema=99))
    done = serve(copy)
    assert done.returncode == MismatchError.exit_code
    assert ["schema", "99", str(SCHEMA_VERSION)] in [line.split() for line in done.stderr.splitlines()]


def test_another_torch(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest["toolchain"].update(torch="1.0.0"))
    done = serve(copy)
    assert done.returncode == MismatchError.exit_code
    assert "1.0.0" in done.stderr
    assert "artifact" in done.stderr
    assert "this machine" in done.stderr


def test_another_instruction_set(tiny_artifact: Path) -> None:
    manifest = load_manifest(tiny_artifact)
    with pytest.raises(MismatchError, match=r"target +cpu-x86-64-v\d\S* +lacks .*avx2"):
        check_machine(manifest, flags={"sse4_2", "avx"})


def test_a_build_for_another_instruction_set_is_refused_where_it_cannot_run(copy: Path) -> None:
    foreign = Target(level="x86-64-v4", extras=("avx512_vnni", "avx_vnni"))
    edit_manifest(copy, lambda manifest: manifest.update(target=str(foreign)))
    with pytest.raises(MismatchError):
        check_machine(load_manifest(copy), flags=Target(level="x86-64-v3").required_flags)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 1, "created": "yesterday"}', "\x00" * 100])
def test_a_manifest_that_is_not_one(copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError):
        load_manifest(copy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.so", "segments/../../outside.so", "a\\b"])
def test_a_path_that_leaves_the_artifact(copy: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["kernel_library"] = name
        manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}

    edit_manifest(copy, change)
    with pytest.raises(ArtifactError, match="outside the artifact"):
        load_manifest(copy)


def test_a_checkpoint_in_place_of_an_artifact(tiny_checkpoint: Path) -> None:
    done = serve(tiny_checkpoint)
    assert done.returncode == ArtifactError.exit_code
    assert "compile it first: engine build" in done.stderr


def test_a_cache_that_holds_no_block(tiny_artifact: Path) -> None:
    done = engine("serve", "--artifacts", tiny_artifact, "--port", 0, "--kv-memory", 1000)
    assert done.returncode == 2
    assert "holds no block" in done.stderr


def test_an_intact_artifact_verifies(tiny_artifact: Path) -> None:
    done = engine("verify", tiny_artifact)
    assert done.returncode == 0
    assert "all intact" in done.stdout
