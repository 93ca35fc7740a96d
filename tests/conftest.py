"""Fixtures and options shared by the tests."""

from pathlib import Path

import pytest

from engine.artifacts.target import Target, this_machine_flags


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-flags", default=None, help="compiler flags of the kernels under test, such as -march=x86-64-v3 (this machine's target)")


@pytest.fixture(scope="session")
def kernel_library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kernel library, loaded into this process.

    The same bytes as the one inside an artifact for this machine, so that both can be used in
    one process.
    """
    from engine.kernels import library, ops

    chosen: str | None = request.config.getoption("--kernel-flags")
    flags = chosen.split() if chosen else Target.parse("cpu", machine_flags=this_machine_flags()).compiler_flags
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    library.compile_library(flags, path)
    ops.load(path)
    return path
