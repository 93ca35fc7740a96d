"""What turns graphs and sources into code, as values that go into keys and the manifest."""

import shutil
import subprocess
from dataclasses import astuple, dataclass
from functools import lru_cache

import torch

from .. import __version__
from ..artifacts import Toolchain
from ..artifacts.verify import torch_release
from ..errors import BuildError

COMPILER = "g++"


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Versions of everything that shapes the compiled code, empty where it does not. Every field is part of every key."""

    torch: str
    compiler: str
    triton: str = ""

    def ingredients(self) -> tuple[str, ...]:
        return astuple(self)

    def recorded(self) -> Toolchain:
        return Toolchain(engine=__version__, torch=self.torch, compiler=self.compiler, triton=self.triton)


@lru_cache(maxsize=1)
def versions() -> Versions:
    """The toolchain of this machine. Raises BuildError where there is no C++ compiler."""
    if shutil.which(COMPILER) is None:
        raise BuildError(
            f"{COMPILER} is not installed", hint="building needs a C++ compiler (Debian and Ubuntu: apt-get install g++); serving does not"
        )
    banner = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    return Versions(torch=torch_release(torch.__version__), compiler=banner.splitlines()[0])


def nvidia_versions() -> Versions:
    """What makes code for NVIDIA. Raises BuildError where it is not there, or too new."""
    from .nvidia.device import check_versions, triton_version

    check_versions()
    return Versions(torch=torch_release(torch.__version__), compiler="", triton=triton_version())
