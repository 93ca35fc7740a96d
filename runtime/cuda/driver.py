"""The NVIDIA driver by ctypes: the functions that serving needs, every call checked.

Names, types and numbers are those of cuda.h, with the versions that it maps its names to in
CUDA 12 (`cuMemAlloc` is `cuMemAlloc_v2`). Handles, device addresses and pointers are passed as
integers. Foreign calls release the GIL.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any

from ...errors import DeviceError

LIBRARY_VARIABLE = "ENGINE_LIBCUDA"
"""Names the driver's library where it is not found by its usual name."""
LEAST_VERSION = 12000
"""The first driver with `cuGraphAddKernelNode_v2`."""

OUT_OF_MEMORY = 2
NO_DEVICE = 100

STREAM_NON_BLOCKING = 1
EVENT_DISABLE_TIMING = 2
FUNCTION_MAX_DYNAMIC_SHARED_BYTES = 8
MEMORY_HOST, MEMORY_DEVICE = 1, 2
ATTRIBUTE_CAPABILITY_MAJOR, ATTRIBUTE_CAPABILITY_MINOR = 75, 76

_int = ctypes.c_int
_unsigned = ctypes.c_uint
_size = ctypes.c_size_t
_address = ctypes.c_uint64
_pointer = ctypes.c_void_p
"""Handles, and memory of this process: takes an integer, None, bytes and what `byref` gives."""

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_unsigned,),
    "cuDriverGetVersion": (_pointer,),
    "cuDeviceGetCount": (_pointer,),
    "cuDeviceGet": (_pointer, _int),
    "cuDeviceGetName": (_pointer, _int, _int),
    "cuDeviceGetAttribute": (_pointer, _int, _int),
    "cuDevicePrimaryCtxRetain": (_pointer, _int),
    "cuDevicePrimaryCtxRelease_v2": (_int,),
    "cuCtxSetCurrent": (_pointer,),
    "cuMemGetInfo_v2": (_pointer, _pointer),
    "cuMemAlloc_v2": (_pointer, _size),
    "cuMemFree_v2": (_address,),
    "cuMemHostAlloc": (_pointer, _size, _unsigned),
    "cuMemFreeHost": (_pointer,),
    "cuMemcpyHtoDAsync_v2": (_address, _pointer, _size, _pointer),
    "cuMemcpyDtoHAsync_v2": (_pointer, _address, _size, _pointer),
    "cuMemcpyDtoDAsync_v2": (_address, _address, _size, _pointer),
    "cuMemcpy2DAsync_v2": (_pointer, _pointer),
    "cuMemsetD8Async": (_address, ctypes.c_ubyte, _size, _pointer),
    "cuStreamCreate": (_pointer, _unsigned),
    "cuStreamDestroy_v2": (_pointer,),
    "cuStreamSynchronize": (_pointer,),
    "cuEventCreate": (_pointer, _unsigned),
    "cuEventDestroy_v2": (_pointer,),
    "cuEventRecord": (_pointer, _pointer),
    "cuEventSynchronize": (_pointer,),
    "cuEventElapsedTime": (_pointer, _pointer, _pointer),
    "cuModuleLoadData": (_pointer, _pointer),
    "cuModuleUnload": (_pointer,),
    "cuModuleGetFunction": (_pointer, _pointer, ctypes.c_char_p),
    "cuFuncSetAttribute": (_pointer, _int, _int),
    "cuGraphCreate": (_pointer, _unsigned),
    "cuGraphDestroy": (_pointer,),
    "cuGraphAddKernelNode_v2": (_pointer, _pointer, _pointer, _size, _pointer),
    "cuGraphInstantiateWithFlags": (_pointer, _pointer, ctypes.c_uint64),
    "cuGraphExecDestroy": (_pointer,),
    "cuGraphLaunch": (_pointer, _pointer),
}

_HINTS = {
    NO_DEVICE: "look whether `nvidia-smi` lists a GPU, and whether CUDA_VISIBLE_DEVICES hides it",
    OUT_OF_MEMORY: "free memory of the GPU, or give less with --kv-memory",
    200: "the artifact's code is damaged, or newer than the driver: run `engine verify DIR`, then update the driver",
    209: "the artifact's code is for another kind of GPU: build it with the --target of this one",
    222: "the artifact's code is newer than the driver: update the driver",
    46: "another process has this GPU for itself: end it, or choose another with CUDA_VISIBLE_DEVICES",
    803: "the driver's library and its kernel module are of different versions: restart the machine after an update",
}
"""By CUresult: what people can do about it."""


class Memcpy2D(ctypes.Structure):
    """CUDA_MEMCPY2D_v2: `Height` rows of `WidthInBytes`, with pitches in bytes."""

    _fields_ = [
        ("srcXInBytes", _size),
        ("srcY", _size),
        ("srcMemoryType", _unsigned),
        ("srcHost", _pointer),
        ("srcDevice", _address),
        ("srcArray", _pointer),
        ("srcPitch", _size),
        ("dstXInBytes", _size),
        ("dstY", _size),
        ("dstMemoryType", _unsigned),
        ("dstHost", _pointer),
        ("dstDevice", _address),
        ("dstArray", _pointer),
        ("dstPitch", _size),
        ("WidthInBytes", _size),
        ("Height", _size),
    ]


KERNEL_NODE_FIELDS = [
    ("func", "<u8"),
    ("grid", "<u4", (3,)),
    ("block", "<u4", (3,)),
    ("sharedMemBytes", "<u4"),
    ("padding", "<u4"),
    ("kernelParams", "<u8"),
    ("extra", "<u8"),
    ("kern", "<u8"),
    ("ctx", "<u8"),
]
"""CUDA_KERNEL_NODE_PARAMS_v2 for a numpy array: thousands of nodes are written at once."""


class Driver:
    """The library, loaded and initialised. Raises DeviceError if there is none, it is too old, or it finds no GPU."""

    def __init__(self) -> None:
        library = _load()
        self._functions = {name: _bind(library, name, arguments) for name, arguments in _SIGNATURES.items()}
        self._describe = [_bind(library, name, (_int, _pointer)) for name in ("cuGetErrorName", "cuGetErrorString")]
        self.version = self._check_version()
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises DeviceError with what it says if that is not success."""
        result = self._functions[name](*arguments)
        if result:
            raise self.error(name, result)

    def function(self, name: str) -> Callable[..., int]:
        """The bare function, for loops that check results themselves."""
        return self._functions[name]

    def error(self, name: str, result: int) -> DeviceError:
        """What `name` returned, in words."""
        return DeviceError(f"{name} failed: {self._words(result)}", code=result, hint=_HINTS.get(result))

    def _words(self, result: int) -> str:
        texts = []
        for describe in self._describe:
            text = ctypes.c_char_p()
            if describe(result, ctypes.byref(text)) == 0 and text.value:
                texts.append(text.value.decode(errors="replace"))
        return ", ".join([*texts[:1], *(f'"{text}"' for text in texts[1:])]) or f"CUresult {result}"

    def _check_version(self) -> int:
        version = _int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        if version.value < LEAST_VERSION:
            raise _too_old(version_text(version.value))
        return version.value


def version_text(version: int) -> str:
    """`12080` -> `12.8`."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _load() -> ctypes.CDLL:
    name = os.environ.get(LIBRARY_VARIABLE) or "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DeviceError(
            f"there is no NVIDIA driver on this machine: {error}",
            hint="install the NVIDIA driver; in a container, give it the GPU (docker run --gpus all)",
        ) from None


def _bind(library: ctypes.CDLL, name: str, arguments: tuple[Any, ...]) -> Callable[..., int]:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise _too_old(f"a version without {name}") from None
    function.argtypes, function.restype = arguments, _int
    bound: Callable[..., int] = function
    return bound


def _too_old(found: str) -> DeviceError:
    return DeviceError(
        f"the NVIDIA driver is too old: it is for CUDA {found}, and {version_text(LEAST_VERSION)} is needed",
        hint="install a newer NVIDIA driver",
    )
