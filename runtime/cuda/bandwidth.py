"""What the GPU's memory can do at most: the driver's own copy from one half of a buffer to the other."""

import ctypes
from contextlib import ExitStack

from .device import Device

_BYTES = 512 << 20
"""More than ten times the second cache of any GPU that we have targets for."""
_PASSES = 10


def memory_bandwidth(device: Device) -> float:
    """Bytes per second, read and written ones together, of the best of several copies. Raises DeviceError if there is no room for them."""
    driver = device.driver
    with ExitStack() as held:
        buffer = held.enter_context(device.allocate(_BYTES, "the copies that measure its bandwidth", hint="give less with --kv-memory"))
        stream = held.enter_context(device.stream())
        begin, end = (held.enter_context(device.event(timing=True)) for _ in range(2))
        milliseconds, best = ctypes.c_float(), float("inf")
        for _ in range(_PASSES):
            driver.call("cuEventRecord", begin.handle, stream.handle)
            driver.call("cuMemcpyDtoDAsync_v2", buffer.handle, buffer.handle + _BYTES // 2, _BYTES // 2, stream.handle)
            driver.call("cuEventRecord", end.handle, stream.handle)
            driver.call("cuEventSynchronize", end.handle)
            driver.call("cuEventElapsedTime", ctypes.byref(milliseconds), begin.handle, end.handle)
            best = min(best, milliseconds.value)
    return _BYTES / (best / 1000)
