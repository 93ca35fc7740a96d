"""The artifact's kernels: cubins that become functions of the driver when a graph first needs them."""

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ...artifacts.graph import KernelInfo
from ...errors import ArtifactError, DeviceError
from . import driver as cuda
from .device import Device

STATIC_SHARED_BYTES = 48 << 10
"""What a block may have of shared memory without asking."""


class Kernels:
    """Functions by their number in the manifest. Loaded one by one: the first graphs need few, and the first user waits for those."""

    def __init__(self, device: Device, directory: Path, infos: Sequence[KernelInfo], held: ExitStack) -> None:
        self.infos = infos
        self._device = device
        self._directory = directory
        self._held = held
        self._modules: dict[str, int] = {}
        self._functions: dict[int, int] = {}

    def function(self, number: int) -> int:
        """The kernel's handle. Raises ArtifactError or DeviceError for code that cannot be loaded. One thread at a time."""
        if number not in self._functions:
            info = self.infos[number]
            try:
                self._functions[number] = self._load(info)
            except DeviceError as error:
                raise DeviceError(f"the kernel {info.function} of {info.file}: {error.message}", code=error.code, hint=error.hint) from None
        return self._functions[number]

    def _load(self, info: KernelInfo) -> int:
        call, function = self._device.driver.call, ctypes.c_void_p()
        call("cuModuleGetFunction", ctypes.byref(function), self._module(info.file), info.function.encode())
        assert function.value is not None
        if info.shared_bytes > STATIC_SHARED_BYTES:
            call("cuFuncSetAttribute", function, cuda.FUNCTION_MAX_DYNAMIC_SHARED_BYTES, info.shared_bytes)
        return function.value

    def _module(self, file: str) -> int:
        if file not in self._modules:
            try:
                image = (self._directory / file).read_bytes()
            except OSError as error:
                raise ArtifactError(f"{self._directory / file} cannot be read: {error}", hint="copy or build the artifact again") from error
            self._modules[file] = self._held.enter_context(self._device.module(image)).handle
        return self._modules[file]
