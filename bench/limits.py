"""What this machine can do at most: a CPU by the artifact's own kernel library (kernels/cpu/limits.cpp), a GPU by its driver."""

import ctypes
from pathlib import Path

import msgspec
import numpy as np

from ..artifacts import Manifest
from ..errors import ArtifactError
from ..kernels.native import load_code

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}
_LEAST_BUFFER = 256 << 20
_PASSES = 5


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Per second, by `threads` threads: bytes read from memory, multiply-adds of bytes and of float32 numbers."""

    threads: int
    read_bytes: float
    int8_macs: float
    float32_macs: float


class GpuLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that copies within the GPU's memory read and write per second."""

    gpu: str
    read_bytes: float


def measure_gpu_limits() -> GpuLimits:
    """Takes a few milliseconds. Raises DeviceError."""
    from ..runtime.cuda.bandwidth import memory_bandwidth
    from ..runtime.cuda.device import Device
    from ..runtime.cuda.driver import Driver

    with Device(Driver()) as device:
        return GpuLimits(gpu=device.name, read_bytes=memory_bandwidth(device))


def measure_limits(directory: Path, manifest: Manifest, threads: int) -> Limits:
    """Takes about a second on an idle machine. Raises ArtifactError for a kernel library that cannot measure."""
    library = load_code(directory / manifest.kernel_library)
    try:
        read, int8, float32 = (getattr(library, f"engine_limit_{name}") for name in ("read", "int8", "float32"))
    except AttributeError as error:
        raise ArtifactError(f"{directory} was built before its kernels could measure a machine", hint="build the artifact again") from error
    for function in (read, int8, float32):
        function.restype = ctypes.c_double
    # Written, so that every page is memory of its own.
    buffer = np.ones(max(_LEAST_BUFFER, 8 * last_cache_bytes()), np.uint8)
    return Limits(
        threads=threads,
        read_bytes=read(ctypes.c_void_p(buffer.ctypes.data), ctypes.c_int64(buffer.nbytes), threads, _PASSES),
        int8_macs=int8(threads, 10 * _PASSES),
        float32_macs=float32(threads, 10 * _PASSES),
    )


def last_cache_bytes(caches: Path = _CACHES) -> int:
    """Size of the largest cache that the first CPU reads through; 0 where the system does not tell."""
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size[-1:] in _UNITS), default=0)
