"""Variables that compilers read, and that no key knows of, change nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.artifacts import load_manifest
from engine.artifacts.store.ingredients import identities
from engine.compiler import environment
from engine.errors import UsageError

HOSTILE = {
    "AOT_INDUCTOR_DEBUG_COMPILE": "1",
    "AOT_INDUCTOR_DEBUG_INTERMEDIATE_VALUE_PRINTER": "2",
    "CFLAGS": "-O0",
    "CXX": "/nonexistent/clang++",
    "CXXFLAGS": "-ffast-math",
    "DISABLE_PTXAS_OPT": "1",
    "GCC_EXEC_PREFIX": "/nonexistent/",
    "OMP_NUM_THREADS": "7",
    "PTXAS_OPTIONS": "-O0",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCHINDUCTOR_CPP_ENABLE_UNSAFE_MATH_OPT_FLAG": "1",
    "TORCHINDUCTOR_CPP_MAX_HORIZONTAL_FUSION_SIZE": "1",
    "TORCHINDUCTOR_CPP_WRAPPER": "1",
    "TORCHINDUCTOR_NAN_ASSERTS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCH_COMPILE_DYNAMIC_SOURCES": "L['x']",
    "TRITON_DEFAULT_FP_FUSION": "0",
    "TRITON_INTERPRET": "1",
}


def left_by(call: str) -> dict[str, str]:
    """The variables that a new process has after a call of one of `environment`'s functions."""
    code = f"import json, os, sys; from engine.compiler import environment; environment.{call}\n"
    code += "print(json.dumps(dict(os.environ))); assert 'torch' not in sys.modules"
    given = {**os.environ, **HOSTILE, "CPATH": "/nonexistent", "HF_HUB_OFFLINE": "1", "TORCH_HOME": "/models", "LC_CTYPE": "C.UTF-8"}
    given["PYTHONHASHSEED"] = "7"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=given, capture_output=True, text=True, check=True)
    left: dict[str, str] = json.loads(done.stdout)
    return left


def test_a_compiler_process_has_only_what_cannot_change_code() -> None:
    left = left_by("enter_compiler_process(os.getppid())")
    assert left["PATH"] == os.environ["PATH"]
    assert left["PYTHONHASHSEED"] == "7"
    assert not left.keys() & {*HOSTILE, "CPATH", "HF_HUB_OFFLINE", "TORCH_HOME"}


def test_compilers_have_temporary_files_where_commands_need_no_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert left_by("enter_compiler_process(os.getppid())")["TMPDIR"] == str(tmp_path)
    spaced = tmp_path / "my files"
    spaced.mkdir()
    monkeypatch.setenv("TMPDIR", str(spaced))
    assert left_by("enter_compiler_process(os.getppid())")["TMPDIR"] == "/tmp"


def test_the_command_forgets_what_torch_would_read() -> None:
    left = left_by("forget_torch_variables()")
    assert left.keys() & {"HF_HUB_OFFLINE", "TORCH_HOME", "OMP_NUM_THREADS"} == {"HF_HUB_OFFLINE", "TORCH_HOME", "OMP_NUM_THREADS"}
    assert [name for name in left if name.startswith(("TORCHDYNAMO", "TORCH_COMPILE", "TORCHINDUCTOR", "AOT_", "TRITON"))] == []


@pytest.mark.parametrize("name", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DYNAMIC_SOURCES", "TORCH_DYNAMO_AUTOMATIC_DYNAMIC_SHAPES"])
def test_a_process_that_has_torch_already_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_LOGS", "")
    environment.check_tracing()
    monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=name):
        environment.check_tracing()


@pytest.mark.slow
def test_a_build_in_a_hostile_environment_makes_the_same(
    tiny_checkpoint: Path, tiny_artifact: Path, own_store: Path, tmp_path: Path
) -> None:
    """The program and one segment are made anew, the rest is from the store; it keeps nothing, and the build says so."""
    manifest = load_manifest(tiny_artifact)
    wanted = {identity.kind: identity for identity in identities(manifest.ingredients)}
    for kind in ("program", "segment"):
        shutil.rmtree(own_store / kind / wanted[kind].key)
    (own_store / "locks").rmdir()
    (own_store / "locks").touch()
    before = sorted(own_store.rglob("*"))
    command = [str(Path(sys.executable).with_name("engine")), "build", str(tiny_checkpoint), "-o", str(tmp_path / "artifact")]
    done = subprocess.run(
        [*command, "--store", str(own_store)],
        env={**os.environ, **HOSTILE, "CPATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "3 distinct, 1 compiled, 2 reused" in said
    assert "could not keep all that was compiled (File exists); the artifact has it" in said
    assert sorted(own_store.rglob("*")) == before
    made = load_manifest(tmp_path / "artifact")
    assert msgspec.structs.replace(made, created=0) == msgspec.structs.replace(manifest, created=0)
