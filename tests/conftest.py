"""Fixtures and options shared by the tests."""

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import ROOT, build_wheel
from filelock import FileLock

from engine.artifacts import load_manifest
from engine.artifacts.store.store import Store
from engine.artifacts.store.transfer import export_entries
from engine.artifacts.target import Target, this_machine_flags

Once = Callable[[str, Callable[[Path], object]], Path]


def this_machine() -> Target:
    return Target.parse("cpu", machine_flags=this_machine_flags())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-flags", default=None, help="compiler flags of the kernels under test (this machine's target)")
    parser.addoption("--real-rounds", type=int, default=0, help="how often test_store_concurrency.py runs eight whole builds at once")
    parser.addoption("--write-models-page", action="store_true", help="write docs/models.md as tests/models/test_families.py finds it")
    parser.addoption("--stand-in", action="store_true", help="run tests/gpu without a GPU, every kernel by Triton's interpreter")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which files take long: seconds of every file of ten or more, in all the processes that run tests."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.location[0]] += report.duration
    long = sorted(((spent, file) for file, spent in seconds.items() if spent >= 10), reverse=True)
    if long:
        terminalreporter.section("seconds per file")
        for spent, file in long:
            terminalreporter.line(f"{spent:7.0f} {file}")


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)` is a path that `make(path)` has filled, in whichever of the processes that run the tests was first."""
    own = tmp_path_factory.getbasetemp()
    directory = own.parent if hasattr(request.config, "workerinput") else own

    def path(name: str, make: Callable[[Path], object]) -> Path:
        place = directory / f"once-{name}"
        with FileLock(f"{place}.lock"):
            if not (place / "made").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                make(place / name)
                (place / "made").touch()
        return place / name

    return path


@pytest.fixture(scope="session")
def compiled_kernels(request: pytest.FixtureRequest, once: Once) -> Path:
    """The kernel library, compiled once in a run: it takes a minute of every processor. Of a copy of the sources, to see that it does not
    depend on where they lie (test_build_segments.py)."""
    from engine.kernels import library

    chosen: str | None = request.config.getoption("--kernel-flags")
    flags = chosen.split() if chosen else this_machine().compiler_flags

    def compile_copy(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "_SOURCES", Path(shutil.copytree(library._SOURCES, path.with_name("sources"))))
            library.compile_library(flags, path)

    return once("kernels.so", compile_copy)


@pytest.fixture(scope="session")
def kernel_library(compiled_kernels: Path) -> Path:
    """The kernel library, loaded into this process. The same bytes as in an artifact for this machine, so that both can be used in one."""
    from engine.kernels import ops

    ops.load(compiled_kernels)
    return compiled_kernels


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, compiled_kernels: Path, once: Once) -> Path:
    """The store of every build in this run, at first with nothing but the kernel library. Others may be writing to it: tests that look at
    all of it have their own."""
    from engine.compiler.lower_cpu import CpuBackend
    from engine.compiler.toolchain import versions

    def make(path: Path) -> None:
        path.mkdir()
        if not request.config.getoption("--kernel-flags"):
            backend = CpuBackend(target=this_machine(), versions=versions())
            library = backend.library()
            Store(path).write(library, {library.key + backend.suffix: compiled_kernels.read_bytes()})

    return once("store", make)


@pytest.fixture(scope="session")
def smollm2_gguf(once: Once) -> Path:
    """The demo model's file, fetched as `make demo` fetches it."""
    fetch = [sys.executable, str(ROOT / "tools" / "demo.py"), "--fetch-only"]
    once("fetched", lambda path: subprocess.run(fetch, check=True))
    (path,) = (ROOT / ".demo").glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, store: Path, once: Once) -> Path:
    """The demo model's artifact for this machine."""
    from engine.compiler.build import build
    from engine.compiler.options import BuildOptions

    return once("smollm2", lambda path: build(BuildOptions(model=str(smollm2_gguf), output=path, name="smollm2", store=store)))


@pytest.fixture(scope="session")
def tiny_checkpoint(once: Once) -> Path:
    """A random Llama of three layers in a Hugging Face directory."""
    from random_checkpoints import write_random_checkpoint

    return once("tiny-llama", lambda path: write_random_checkpoint("llama", path))


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, store: Path, once: Once) -> Path:
    """The artifact of `tiny_checkpoint`. Tests that change it work on a copy."""
    from engine.compiler.build import build
    from engine.compiler.options import BuildOptions

    return once("tiny-artifact", lambda path: build(BuildOptions(model=str(tiny_checkpoint), output=path, store=store)))


@pytest.fixture
def own_store(tiny_artifact: Path, store: Path, tmp_path: Path) -> Path:
    """A store with what `tiny_artifact` was made from, of which a test may do with it what it likes."""
    export_entries(load_manifest(tiny_artifact), Store(store), Store(tmp_path / "own-store"))
    return tmp_path / "own-store"


@pytest.fixture(scope="session")
def wheel(once: Once) -> Path:
    """The package as it is shipped."""
    (path,) = once("wheel", lambda wheels: build_wheel(wheels.with_name("checkout"), wheels)).iterdir()
    return path
