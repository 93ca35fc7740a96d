"""The stand-in for the NVIDIA driver (fake_libcuda.c), built when a test first wants it."""

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cubin import parameter_sizes
from numpy.typing import NDArray

from engine.artifacts import Manifest
from engine.artifacts.graph import Parameter
from engine.runtime.cuda.driver import LIBRARY_VARIABLE

SOURCE = Path(__file__).with_name("fake_libcuda.c")
KINDS = ("device", "pinned", "context", "stream", "event", "module", "graph", "exec")
_LETTERS: dict[Parameter, str] = {"pointer": "p", "int32": "i", "int64": "l", "float32": "f"}
_CTYPES: dict[Parameter, Any] = {
    "pointer": ctypes.c_uint64,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
}
_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_uint32,
    ctypes.POINTER(ctypes.c_void_p),
)


class Launched(NamedTuple):
    """A kernel node as the driver would run it. parameters: addresses of the values."""

    image: bytes
    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: Any

    def values(self, kinds: Sequence[Parameter]) -> list[Any]:
        """The arguments as numbers; memory as its address."""
        return [_CTYPES[kind].from_address(self.parameters[index]).value for index, kind in enumerate(kinds)]


class FakeCuda:
    """The loaded stand-in, as new. `on_launch` is what runs kernels; what it raises, `check` raises."""

    def __init__(self) -> None:
        self.path = library_path()
        self.library = library = ctypes.CDLL(str(self.path))
        library.fake_violations.restype = ctypes.c_char_p
        library.fake_live.restype = library.fake_launches.restype = library.fake_nodes_launched.restype = ctypes.c_long
        library.fake_set_total_memory.argtypes = [ctypes.c_size_t]
        library.fake_declare.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
        library.fake_advance.argtypes = [ctypes.c_double]
        library.fake_allocated.argtypes, library.fake_allocated.restype = [ctypes.c_size_t], ctypes.c_size_t
        library.fake_reset()
        self._error: BaseException | None = None
        self._hook: Any = None

    def declare(self, directory: Path, manifest: Manifest) -> None:
        """Tell the stand-in what parameters the artifact's kernels take, which a driver reads in the cubin; so does an assertion here."""
        for kernel in manifest.kernels:
            image = (directory / kernel.file).read_bytes()
            sizes = parameter_sizes(image, kernel.function)
            assert sizes in (None, [ctypes.sizeof(_CTYPES[kind]) for kind in kernel.parameters]), (kernel, sizes)
            kinds = "".join(_LETTERS[kind] for kind in kernel.parameters)
            self.library.fake_declare(image, len(image), kernel.function.encode(), kinds.encode())

    def on_launch(self, run: Callable[[Launched], None]) -> None:
        def hook(image: int, size: int, name: bytes, grid: Any, block: Any, shared: int, parameters: Any) -> int:
            try:
                run(Launched(ctypes.string_at(image, size), name.decode(), tuple(grid[:3]), tuple(block[:3]), shared, parameters))
            except BaseException as error:
                self._error = self._error or error
                return 1
            return 0

        self._hook = _HOOK(hook)
        self.library.fake_set_launch_hook(self._hook)

    def fail(self, function: str, result: int, after: int = 0) -> None:
        """The call of this function after `after` others fails."""
        self.library.fake_fail(function.encode(), result, after)

    def allocated(self, address: int) -> int:
        """Bytes from an address to the end of its allocation."""
        return int(self.library.fake_allocated(address))

    def advance(self, seconds: float) -> None:
        """For `on_launch`: so long its kernel would have taken."""
        self.library.fake_advance(1000 * seconds)

    @property
    def launches(self) -> int:
        return int(self.library.fake_launches())

    @property
    def violations(self) -> str:
        return bytes(self.library.fake_violations()).decode()

    def alive(self) -> dict[str, int]:
        """What has not been freed, and how many of it."""
        counts = {kind: int(self.library.fake_live(kind.encode())) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def check(self) -> None:
        """Nothing was used wrongly, and no kernel raised."""
        if self._error is not None:
            raise self._error
        assert self.violations == "", self.violations


def memory(address: int, dtype: str, *shape: int) -> NDArray[Any]:
    """What lies at an address of the "GPU", to read and write."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(dtype).reshape(shape)


@contextmanager
def fake_cuda_installed() -> Iterator[FakeCuda]:
    """A stand-in that the runtime finds. At the end nothing may be alive and nothing may have been used wrongly."""
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeCuda()
        patch.setenv(LIBRARY_VARIABLE, str(fake.path))
        try:
            yield fake
        except Exception:
            fake.check()  # what a kernel raised says more than what the driver made of it
            raise
        fake.check()
        assert fake.alive() == {}, fake.alive()


@cache
def library_path() -> Path:
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / "libfakecuda.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
    subprocess.run(["gcc", *flags, str(SOURCE), "-o", str(path)], check=True)
    return path


def fake_cubin(function: str, text: str = "") -> bytes:
    """An ELF header that tells its length, and the name of a function."""
    content = f"\0{function}\0{text}\0".encode()
    size = 64 + len(content)
    header = bytearray(b"\x7fELF\x02\x01\x01".ljust(64, b"\0"))
    header[40:48] = size.to_bytes(8, "little")  # the table of sections would begin here
    header[58:60] = (64).to_bytes(2, "little")
    return bytes(header) + content
