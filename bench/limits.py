"""What this machine can do at most: a CPU by limits.cpp, compiled for it when it is measured, a GPU by its driver."""

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from ..artifacts import Target, parse_target
from ..errors import UsageError
from ..kernels.library import COMPILER, compile_sources
from ..kernels.native import load_libtorch

_SOURCE = Path(__file__).with_name("limits.cpp")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}
_LEAST_BUFFER = 256 << 20
_PASSES = 5


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Per second, by `threads` threads: bytes read from memory, multiply-adds of bytes, of bfloat16 and of float32 numbers."""

    threads: int
    read_bytes: float
    int8_macs: float
    bfloat16_macs: float
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


def measure_limits(target: str, threads: int) -> Limits | None:
    """With the instructions of that target. Takes some seconds, most of them g++'s; None where there is no g++."""
    if shutil.which(COMPILER) is None:
        return None
    read, int8, bfloat16, float32 = compiled_limits(target)
    # Written, so that every page is memory of its own.
    buffer = np.ones(max(_LEAST_BUFFER, 8 * last_cache_bytes()), np.uint8)
    return Limits(
        threads=threads,
        read_bytes=read(ctypes.c_void_p(buffer.ctypes.data), ctypes.c_int64(buffer.nbytes), threads, _PASSES),
        int8_macs=int8(threads, 10 * _PASSES),
        bfloat16_macs=bfloat16(threads, 10 * _PASSES),
        float32_macs=float32(threads, 10 * _PASSES),
    )


def compiled_limits(target: str) -> tuple[Callable[..., float], ...]:
    """The functions of limits.cpp: bytes read; bytes, bfloat16 and float32 numbers multiplied, per second.

    Raises BuildError if it does not compile, UsageError for a target that is no CPU.
    """
    cpu = parse_target(target)
    if not isinstance(cpu, Target):
        raise UsageError(f"{target} is no CPU", hint="take an artifact for a CPU")
    with TemporaryDirectory(prefix="engine-limits-") as directory:
        file = Path(directory) / "limits.so"
        compile_sources([_SOURCE], cpu.compiler_flags, file)
        load_libtorch()  # which the compiler links it to, as it does all of ours
        library = ctypes.CDLL(str(file))
    functions = [getattr(library, f"engine_limit_{name}") for name in ("read", "int8", "bfloat16", "float32")]
    for function in functions:
        function.restype = ctypes.c_double
    return tuple(functions)


def last_cache_bytes(caches: Path = _CACHES) -> int:
    """Size of the largest cache that the first CPU reads through; 0 where the system does not tell."""
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size[-1:] in _UNITS), default=0)


def share_of_read(bytes_per_s: float, limits: Limits | GpuLimits | None) -> str:
    """What part of the read bandwidth that is, for a table."""
    return "-" if limits is None else f"{bytes_per_s / limits.read_bytes:.0%}"


def describe_limits(limits: Limits | GpuLimits | None) -> str:
    """One line for below a table."""
    if limits is None:
        return f"limits: not measured, as {COMPILER} is not installed"
    if isinstance(limits, GpuLimits):
        return f"limits, {limits.gpu}: copies read and write {limits.read_bytes / 1e9:,.1f} GB/s"
    read = f"read {limits.read_bytes / 1e9:.1f} GB/s"
    macs = {"int8": limits.int8_macs, "bfloat16": limits.bfloat16_macs, "float32": limits.float32_macs}
    return f"limits, {limits.threads} threads: {', '.join((read, *(f'{name} {count / 1e9:,.0f} GMAC/s' for name, count in macs.items())))}"
