"""What turns graphs and sources into code, as values that go into keys and the manifest."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import torch

from ..artifacts import Toolchain
from ..artifacts.verify import torch_release
from ..errors import BuildError
from ..kernels.library import COMPILER
from ..version import __version__


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Versions of everything that shapes the compiled code, empty where it does not. Every field is part of every key.

    torch_commit: what that version was built from, the same for its CPU and CUDA builds. compiler, linker, libc: of C++.
    """

    torch: str
    compiler: str
    triton: str = ""
    torch_commit: str = ""
    linker: str = ""
    libc: str = ""
    python: str = ""
    sympy: str = ""

    def recorded(self) -> Toolchain:
        return Toolchain(engine=__version__, torch=self.torch, compiler=self.compiler, triton=self.triton)


@lru_cache(maxsize=1)
def versions() -> Versions:
    """The toolchain of this machine. Raises BuildError where there is no C++ compiler."""
    if shutil.which(COMPILER) is None:
        raise BuildError(
            f"{COMPILER} is not installed", hint="building needs a C++ compiler (Debian and Ubuntu: apt-get install g++); serving does not"
        )
    return Versions(
        compiler=_first_line(COMPILER, "--version"),
        linker=_first_line(_first_line(COMPILER, "-print-prog-name=ld"), "--version"),
        libc=os.confstr("CS_GNU_LIBC_VERSION") or "",
        **_python_packages(),
    )


def nvidia_versions() -> Versions:
    """What makes code for NVIDIA. Raises BuildError where it is not there, or too new."""
    from .nvidia.releases import check_versions, triton_version

    check_versions()
    return Versions(compiler="", triton=triton_version(), **_python_packages())


def _python_packages() -> dict[str, str]:
    return {
        "torch": torch_release(torch.__version__),
        "torch_commit": str(torch.version.git_version),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "sympy": version("sympy"),  # Inductor's sizes and indices are its expressions
    }


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0]
