"""Fixtures and options shared by the tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, build_wheel

from engine.artifacts.target import Target, this_machine_flags


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-flags", default=None, help="compiler flags of the kernels under test (this machine's target)")
    parser.addoption("--stand-in", action="store_true", help="run tests/gpu without a GPU, every kernel by Triton's interpreter")


@pytest.fixture(scope="session")
def kernel_library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kernel library, loaded into this process.

    The same bytes as the one inside an artifact for this machine, so that both can be used in
    one process; from a copy of the sources, to see that it does not depend on where they lie.
    """
    from engine.kernels import library, ops

    chosen: str | None = request.config.getoption("--kernel-flags")
    flags = chosen.split() if chosen else Target.parse("cpu", machine_flags=this_machine_flags()).compiler_flags
    directory = tmp_path_factory.mktemp("kernels")
    path = directory / "kernels.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_SOURCES", Path(shutil.copytree(library._SOURCES, directory / "sources")))
        library.compile_library(flags, path)
    ops.load(path)
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of every build in this run, empty at first."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The demo model's file, fetched as `make demo` fetches it."""
    subprocess.run([sys.executable, str(ROOT / "tools" / "demo.py"), "--fetch-only"], check=True)
    (path,) = (ROOT / ".demo").glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's artifact for this machine."""
    from engine.compiler.build import BuildOptions, build

    output = tmp_path_factory.mktemp("smollm2") / "artifact"
    build(BuildOptions(model=str(smollm2_gguf), output=output, name="smollm2", store=store))
    return output


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of three layers in a Hugging Face directory."""
    from random_checkpoints import write_random_checkpoint

    return write_random_checkpoint("llama", tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of `tiny_checkpoint`. Tests that change it work on a copy."""
    from engine.compiler.build import BuildOptions, build

    output = tmp_path_factory.mktemp("tiny-artifact") / "artifact"
    build(BuildOptions(model=str(tiny_checkpoint), output=output, store=store))
    return output


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is shipped."""
    return build_wheel(tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("wheel"))
