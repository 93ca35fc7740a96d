"""One GPU: its memory, streams, events and modules, each freed once, by whoever holds it."""

import ctypes
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...errors import DeviceError
from . import driver as cuda
from .driver import Driver


class Resource:
    """A handle or an address of the driver's, freed by `close` or at the end of a `with` block.

    Freeing is not checked: it reports failures of earlier work, which has been waited for and
    checked where its results were wanted.
    """

    def __init__(self, driver: Driver, handle: int, free: str) -> None:
        self.handle = handle
        self._free: Callable[[int], int] | None = driver.function(free)

    def close(self) -> None:
        if self._free is not None:
            self._free(self.handle)
            self._free = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class Pinned(Resource):
    """Memory of this process that the GPU copies from and to by itself."""

    def __init__(self, driver: Driver, address: int, nbytes: int) -> None:
        super().__init__(driver, address, "cuMemFreeHost")
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class Device:
    """The first GPU that this process sees, with its primary context.

    capability: compute capability times ten. A thread calls `make_current` before anything else.
    Raises DeviceError where there is none.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        count, device = ctypes.c_int(), ctypes.c_int()
        driver.call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            raise driver.error("cuDeviceGetCount", cuda.NO_DEVICE)
        driver.call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device.value
        self.name = self._name()
        major, minor = (self._attribute(which) for which in (cuda.ATTRIBUTE_CAPABILITY_MAJOR, cuda.ATTRIBUTE_CAPABILITY_MINOR))
        self.capability = 10 * major + minor
        self._context: int | None = None

    def open(self) -> None:
        """Take the context and make it current; before this, a device only tells what it is."""
        context = ctypes.c_void_p()
        self.driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._context = context.value
        try:
            self.make_current()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._context is not None:
            self._context = None
            self.driver.function("cuDevicePrimaryCtxRelease_v2")(self._device)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def make_current(self) -> None:
        """Let this thread use the device."""
        self.driver.call("cuCtxSetCurrent", self._context)

    def memory(self) -> tuple[int, int]:
        """Bytes free, and bytes in all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, nbytes: int, what: str, *, hint: str) -> Resource:
        """Memory of the GPU, aligned to 256 bytes. Raises DeviceError, with `what` wanted it and the `hint`, if there is too little."""
        address = ctypes.c_uint64()
        try:
            self.driver.call("cuMemAlloc_v2", ctypes.byref(address), max(1, nbytes))
        except DeviceError as error:
            if error.code != cuda.OUT_OF_MEMORY:
                raise
            free, total = self.memory()
            raise DeviceError(
                f"{what} need {nbytes:,} bytes of the GPU's memory; of its {total:,} bytes {free:,} are free", code=error.code, hint=hint
            ) from None
        return Resource(self.driver, address.value, "cuMemFree_v2")

    def pinned(self, nbytes: int) -> Pinned:
        address = ctypes.c_void_p()
        self.driver.call("cuMemHostAlloc", ctypes.byref(address), max(1, nbytes), 0)
        assert address.value is not None
        return Pinned(self.driver, address.value, nbytes)

    def stream(self) -> Resource:
        return self._create("cuStreamCreate", "cuStreamDestroy_v2", cuda.STREAM_NON_BLOCKING)

    def event(self, *, timing: bool = False) -> Resource:
        return self._create("cuEventCreate", "cuEventDestroy_v2", 0 if timing else cuda.EVENT_DISABLE_TIMING)

    def module(self, image: bytes) -> Resource:
        """Code for this GPU: a cubin's bytes."""
        return self._create("cuModuleLoadData", "cuModuleUnload", image)

    def _create(self, create: str, free: str, argument: object) -> Resource:
        handle = ctypes.c_void_p()
        self.driver.call(create, ctypes.byref(handle), argument)
        assert handle.value is not None
        return Resource(self.driver, handle.value, free)

    def _name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.driver.call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode(errors="replace")

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self.driver.call("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return value.value
