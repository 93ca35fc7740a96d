"""Native code in this process: torch's C++ library, and a kernel library over it.

Imports no torch. The C++ library is all that an artifact needs, and is there in a sixth of the
time and with 90 MB less memory than the Python package.
"""

import ctypes
import filecmp
import os
from importlib.machinery import PathFinder
from pathlib import Path

from ..errors import ArtifactError, EngineError, Misfit, MismatchError

_LIBTORCH = Path("lib") / "libtorch_cpu.so"


class _State:
    """The kernel library that this process runs, and where it was loaded from."""

    kernels: Path | None = None
    library: ctypes.CDLL | None = None


def torch_directory() -> Path:
    """Where the torch of this environment is installed. Raises EngineError if there is none."""
    spec = PathFinder.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("torch is not installed", hint="install Engine again: torch is one of its requirements")
    return Path(next(iter(spec.submodule_search_locations)))


def load_libtorch() -> None:
    """Load torch's C++ library for other native code to use. Raises EngineError if that fails."""
    file = torch_directory() / _LIBTORCH
    try:
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EngineError(f"torch's library cannot be loaded: {error}", hint="install torch again") from error


def load_code(path: Path) -> ctypes.CDLL:
    """The kernel library at `path`, loaded for compiled code to call; torch learns nothing of it.

    A process holds one kernel library. Loading it again, from any path, gives what is there.
    Raises ArtifactError if the file cannot be loaded or differs from the one already loaded,
    MismatchError if the system does not let this process run it.
    """
    load_libtorch()
    try:
        if _State.kernels is not None and _State.library is not None:
            if filecmp.cmp(_State.kernels, path, shallow=False):
                return _State.library
            raise ArtifactError(
                f"{path} cannot be loaded: this process already runs the kernels of {_State.kernels}",
                hint="use one process per artifact",
            )
        # Globally: compiled segments find the operators' C functions by symbol.
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        if os.statvfs(path.parent).f_flag & os.ST_NOEXEC:
            raise MismatchError(
                f"the kernels {path} lie on a file system from which nothing may be executed",
                [Misfit(field="mounted", artifact="exec", machine="noexec")],
                hint="mount it without noexec, or copy the artifact to another file system",
            ) from error
        raise ArtifactError(
            f"the kernel library {path} cannot be loaded: {error}", hint="build the artifact again on this machine"
        ) from error
    _prepare(library, path)
    _State.kernels, _State.library = path, library
    return library


def _prepare(library: ctypes.CDLL, path: Path) -> None:
    if not hasattr(library, "engine_prepare"):  # it needs nothing of the system
        return
    library.engine_prepare.restype = ctypes.c_char_p
    if refusal := library.engine_prepare():
        what, _, why = refusal.decode(errors="replace").partition(": ")
        raise MismatchError(
            f"this system does not let a process run the kernels {path}",
            [Misfit(field=what, artifact="needed", machine=f"refused: {why}")],
            hint="build the artifact for the same target without +amx_int8, or run it on Linux 5.16 or newer, outside of what hides AMX",
        )
