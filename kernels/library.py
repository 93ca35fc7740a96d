"""Compiling C++ for a target: the kernel library, and what else is written over its vectors."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import BuildError
from .native import torch_directory

_SOURCES = Path(__file__).parent / "cpu"
COMPILER = "g++"
FLAGS = (
    "-O3",
    "-std=c++20",
    "-fopenmp",
    "-shared",
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


def compile_command(sources: Sequence[Path], march_flags: Sequence[str], output: Path, *, compiler: str = COMPILER) -> list[str]:
    """The compiler's command line. Its result holds no path of this machine and no debug information."""
    torch = torch_directory()
    return [
        compiler,
        *FLAGS,
        *march_flags,
        *anonymous_flags({_SOURCES: "kernels"}),
        f"-isystem{torch / 'include'}",
        *(str(path) for path in sources),
        f"-L{torch / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
        "-o",
        str(output),
    ]


def compile_library(march_flags: Sequence[str], output: Path, *, compiler: str = COMPILER) -> None:
    """Compile every kernel into one shared object. Raises as `compile_sources` does."""
    compile_sources([path for path in source_files() if path.suffix == ".cpp"], march_flags, output, compiler=compiler)


def compile_sources(sources: Sequence[Path], march_flags: Sequence[str], output: Path, *, compiler: str = COMPILER) -> None:
    """Compile C++ for the CPU that `march_flags` name (`-march=x86-64-v3`) into the shared object `output`.

    Raises BuildError if there is no such compiler or it fails.
    """
    command = compile_command(sources, march_flags, output, compiler=compiler)
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(
            f"the C++ compiler {compiler} cannot be run: {error.strerror}",
            hint="install GCC 12 or newer (Debian and Ubuntu: apt-get install g++)",
        ) from error
    if result.returncode != 0:
        message = "\n".join(result.stderr.strip().splitlines()[-_MESSAGE_LINES:])
        raise BuildError(
            f"compiling the CPU kernels failed: {compiler} exited with {result.returncode}\n{message}",
            hint="the kernels need GCC 12 or newer with OpenMP, and the target's flags must be known to it",
        )
