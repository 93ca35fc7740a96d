"""Compiling C++ for a target: the kernel library, and what else is written over its vectors."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import BuildError
from .native import torch_directory

_SOURCES = Path(__file__).parent / "cpu"
COMPILER = "g++"
FLAGS = (
    "-O3",
    "-std=c++20",
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
    # The kernels say themselves where a multiply and an add are fused.
    "-ffp-contract=off",
    "-fno-math-errno",
    # It moves every addition of a sum behind its last product, and all the products spill.
    "-fno-tree-ter",
    "-Wno-psabi",
)
_MESSAGE_LINES = 20


def source_files() -> list[Path]:
    """Every C++ file and header of the kernels, sorted by name."""
    return sorted([*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h")])


def anonymous_flags(names: Mapping[Path, str]) -> list[str]:
    """What keeps places of this machine out of the compiler's result: torch's, and those of `names`, with what they are called instead."""
    maps = [f"-ffile-prefix-map={directory}={name}" for directory, name in {**names, torch_directory(): "torch"}.items()]
    return [*maps, "-Wl,--build-id=none"]


def compile_library(march_flags: Sequence[str], output: Path, *, compiler: str = COMPILER) -> None:
    """Compile every kernel into one shared object. Raises as `compile_sources` does."""
    compile_sources([path for path in source_files() if path.suffix == ".cpp"], march_flags, output, compiler=compiler)


def compile_sources(sources: Sequence[Path], march_flags: Sequence[str], output: Path, *, compiler: str = COMPILER) -> None:
    """Compile C++ for the CPU that `march_flags` name (`-march=x86-64-v3`) into the shared object `output`, as many files at once
    as there are processors. The result holds no path of this machine and no debug information.

    Raises BuildError if there is no such compiler or it fails.
    """
    torch = torch_directory()
    flags = [*FLAGS, *march_flags, *anonymous_flags({_SOURCES: "kernels"})]
    with TemporaryDirectory(prefix="engine-kernels-") as directory, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [Path(directory) / f"{source.stem}.o" for source in sources]

        def compile_one(source: Path, result: Path) -> None:
            _run([compiler, *flags, f"-isystem{torch / 'include'}", "-c", str(source), "-o", str(result)])

        list(pool.map(compile_one, sources, objects))
        _run([compiler, *flags, "-shared", *map(str, objects), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(output)])


def _run(command: Sequence[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"the C++ compiler {command[0]} cannot be run: {error.strerror}",
            hint="install GCC 12 or newer (Debian and Ubuntu: apt-get install g++)",
        ) from error
    if result.returncode != 0:
        message = "\n".join(result.stderr.strip().splitlines()[-_MESSAGE_LINES:])
        raise BuildError(
            f"compiling the CPU kernels failed: {command[0]} exited with {result.returncode}\n{message}",
            hint="the kernels need GCC 12 or newer with OpenMP, and the target's flags must be known to it",
        )
