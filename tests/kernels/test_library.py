"""Compiling the kernels: for every instruction set, with errors that say what to do. Reproducible: test_reproducible_builds.py."""

import importlib
import subprocess
import sys
from pathlib import Path

import amx
import pytest
from checkout import ROOT
from tiers import tiered

from engine.artifacts.target import Target, this_machine_flags
from engine.errors import ArtifactError, BuildError, EngineError
from engine.kernels import library, native, ops

TESTS = ROOT / "tests"
# Compiler flags -> the /proc/cpuinfo flags needed to run the result. Each is another path through cpu/simd.h, cpu/products.h and cpu/dot.h.
VARIANTS = {
    "-march=x86-64-v2": set[str](),
    "-march=x86-64-v3": {"avx2", "fma", "f16c"},
    "-march=x86-64-v3 -mavxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "-march=x86-64-v4": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "-march=x86-64-v4 -mavx512bf16 -mavx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"},
    "-march=x86-64-v4 -mavx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "-march=x86-64-v4 -mavx512vnni -mamx-tile -mamx-int8": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},  # see amx.py
}
# What every run of the tests computes with, beside this machine's own: what all servers have.
_ALWAYS = ("-march=x86-64-v3",)
OURS = " ".join(Target.parse("cpu", machine_flags=this_machine_flags()).compiler_flags)


@pytest.mark.slow
@pytest.mark.parametrize("flags", tiered([flags for flags in VARIANTS if flags != OURS], _ALWAYS))
def test_every_instruction_set_passes_the_kernel_tests(flags: str, tmp_path: Path) -> None:
    """In a process of its own, since a process holds one kernel library. What this machine's target has, this run tests anyway."""
    missing = VARIANTS[flags] - this_machine_flags()
    if missing:
        pytest.skip(f"this machine lacks {', '.join(sorted(missing))}")
    environment = None
    if "amx" in flags:
        if reason := amx.unusable():
            pytest.skip(reason)
        environment = amx.environment(amx.compile_emulator(tmp_path))
    files = [str(TESTS / "kernels" / f"test_{family}.py") for family in ("linear", "attention")]
    # pytest's own handler of SIGILL would stand before the emulator's.
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", f"--kernel-flags={flags}"]
    command = [sys.executable, "-P", "-m", "pytest", *options, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent, env=environment)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


_NOEXEC = """
mount -t tmpfs -o noexec tmpfs {place} && cp {library} {place}/kernels.so || exit 77
exec {python} -P -c 'from pathlib import Path; from engine.kernels.native import load_code; load_code(Path("{place}/kernels.so"))'
"""


def test_a_mount_from_which_nothing_may_be_executed_is_named(kernel_library: Path, tmp_path: Path) -> None:
    script = _NOEXEC.format(place=tmp_path, library=kernel_library, python=sys.executable)
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert "MismatchError: the kernels" in done.stderr
    assert "mounted  exec      noexec" in done.stderr
    assert "hint: mount it without noexec" in done.stderr


def test_no_compiler() -> None:
    with pytest.raises(BuildError, match="no-such-compiler cannot be run") as caught:
        library.compile_library([], Path("unused.so"), compiler="no-such-compiler")
    assert caught.value.hint is not None
    assert "g++" in caught.value.hint


def test_a_failing_compile_shows_the_compilers_words(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no-such-processor"):
        library.compile_library(["-march=no-such-processor"], tmp_path / "kernels.so")
    assert not (tmp_path / "kernels.so").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a shared object"])
def test_a_broken_library_is_an_artifact_error(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native._State, "kernels", None)
    path = tmp_path / "kernels.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        ops.load(path)


def test_loading_imports_no_compiler(kernel_library: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from engine.kernels import ops
ops.load(Path({str(kernel_library)!r}))
import torch
from engine.kernels.linear import linear
assert linear("dense", torch.ones(1, 2), torch.ones(1, 2, 16), None, 16)[0, 0] == 2
found = [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor", "triton", "transformers"))]
assert not found, found
"""
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_package_registers_nothing_at_import() -> None:
    code = "import engine.kernels, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_torch_that_is_not_there_or_damaged_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(EngineError, match="torch is not installed"):
        native.load_libtorch()
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    importlib.invalidate_caches()
    with pytest.raises(EngineError, match=r"torch's library cannot be loaded: .*libtorch_cpu\.so"):
        native.load_libtorch()
