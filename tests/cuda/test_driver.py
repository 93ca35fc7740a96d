"""The driver by ctypes: what it says when something is refused, and that the stand-in refuses what a driver would."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda, fake_cubin, fake_cuda_installed, memory

from engine.errors import DeviceError
from engine.runtime.cuda.device import Device
from engine.runtime.cuda.driver import Driver, version_text


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


@pytest.fixture
def device(fake: FakeCuda) -> Iterator[Device]:
    with Device(Driver()) as device:
        yield device


def test_what_it_is(device: Device) -> None:
    assert (device.name, device.capability, version_text(device.driver.version)) == ("Stand-in 0", 90, "12.8")


def test_an_error_names_the_call_and_says_what_to_do(fake: FakeCuda, device: Device) -> None:
    for code, name, hint in (
        (2, 'CUDA_ERROR_OUT_OF_MEMORY, "words of the stand-in"', "--kv-memory"),
        (209, 'CUDA_ERROR_NO_BINARY_FOR_GPU, "words of the stand-in"', "--target"),
        (100, 'CUDA_ERROR_NO_DEVICE, "words of the stand-in"', "nvidia-smi"),
    ):
        fake.fail("cuStreamCreate", code)
        with pytest.raises(DeviceError) as caught:
            device.stream()
        assert (caught.value.message, caught.value.code) == (f"cuStreamCreate failed: {name}", code)
        assert hint in (caught.value.hint or "")
    fake.fail("cuStreamCreate", 12345)
    with pytest.raises(DeviceError, match=r"^cuStreamCreate failed: CUresult 12345\nhint: nvidia-smi"):
        device.stream()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_LIBCUDA", "libthereisnone.so.7")
    with pytest.raises(DeviceError, match="there is no NVIDIA driver on this machine: libthereisnone") as caught:
        Driver()
    assert caught.value.code is None


def test_a_library_that_lacks_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_LIBCUDA", "libc.so.6")
    with pytest.raises(DeviceError, match="the NVIDIA driver is too old: it is for CUDA a version without cuInit"):
        Driver()


def test_memory_there_is_too_little_of(fake: FakeCuda, device: Device) -> None:
    fake.library.fake_set_total_memory(1000)
    with (
        device.allocate(400, "the first", hint="-"),
        pytest.raises(DeviceError, match="the second need 601 bytes of the GPU's memory; of its 1,000 bytes 600 are free") as caught,
    ):
        device.allocate(601, "the second", hint="ask for less")
    assert caught.value.hint == "ask for less"


def test_copies_there_and_back(device: Device) -> None:
    with device.stream() as stream, device.pinned(64) as ours, device.pinned(64) as back, device.allocate(64, "bytes", hint="") as theirs:
        ours.bytes[:] = range(64)
        device.driver.call("cuMemcpyHtoDAsync_v2", theirs.handle, ours.handle, 64, stream.handle)
        device.driver.call("cuMemcpyDtoHAsync_v2", back.handle, theirs.handle, 64, stream.handle)
        assert back.bytes[0] == back.bytes[63] == 0xA5, "the stand-in does not wait for the wait"
        device.driver.call("cuStreamSynchronize", stream.handle)
        assert back.bytes.tolist() == list(range(64))


def violation(fake: FakeCuda) -> str:
    """The last thing that was used wrongly; it is forgotten."""
    text = fake.violations.splitlines()[-1]
    fake.library.fake_forget_violations()
    return text


def test_the_stand_in_refuses_what_reaches_outside(fake: FakeCuda, device: Device) -> None:
    with device.stream() as stream, device.pinned(64) as ours, device.allocate(64, "bytes", hint="") as theirs:
        for to, source, count in ((theirs.handle, ours.handle, 65), (theirs.handle + 1, ours.handle, 64), (ours.handle, ours.handle, 1)):
            with pytest.raises(DeviceError, match="INVALID_VALUE"):
                device.driver.call("cuMemcpyHtoDAsync_v2", to, source, count, stream.handle)
            assert "are not in one" in violation(fake)
        pageable = np.zeros(64, np.uint8)
        with pytest.raises(DeviceError, match="INVALID_VALUE"):
            device.driver.call("cuMemcpyHtoDAsync_v2", theirs.handle, pageable.ctypes.data, 64, stream.handle)
        assert "are not in one pinned allocation" in violation(fake)


def test_the_stand_in_knows_what_is_gone(fake: FakeCuda, device: Device) -> None:
    stream, theirs = device.stream(), device.allocate(64, "bytes", hint="")
    assert fake.alive() == {"context": 1, "stream": 1, "device": 1}
    theirs.close()
    theirs.close()
    stream.close()
    assert fake.alive() == {"context": 1}
    assert fake.violations == "", "closing twice frees once"
    with pytest.raises(DeviceError, match="INVALID_HANDLE"):
        device.driver.call("cuStreamSynchronize", stream.handle)
    assert "the stream 0x" in violation(fake)
    with pytest.raises(DeviceError, match="INVALID_VALUE"):
        device.driver.call("cuMemFree_v2", theirs.handle)
    assert "was not allocated, or is free already" in violation(fake)


def test_the_stand_in_wants_a_context(fake: FakeCuda) -> None:
    driver = Driver()
    with pytest.raises(DeviceError, match="INVALID_CONTEXT"):
        driver.call("cuStreamCreate", ctypes.byref(ctypes.c_void_p()), 0)
    assert "no current context" in violation(fake)


def test_the_stand_in_takes_only_code(fake: FakeCuda, device: Device, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="INVALID_IMAGE") as caught:
        device.module(b"text" * 100)
    assert "run `engine verify DIR`" in (caught.value.hint or "")
    image = fake_cubin("here")
    fake.library.fake_declare(image, len(image), b"here", b"p")
    with device.module(image) as module:
        function = ctypes.c_void_p()
        device.driver.call("cuModuleGetFunction", ctypes.byref(function), module.handle, b"here")
        for name in (b"her", b"ere2"):
            with pytest.raises(DeviceError, match="NOT_FOUND"):
                device.driver.call("cuModuleGetFunction", ctypes.byref(function), module.handle, name)
        with pytest.raises(DeviceError, match="INVALID_VALUE"):
            device.driver.call("cuFuncSetAttribute", function, 8, 232449)
        assert "cannot be 232449" in violation(fake)


def test_memory_is_garbage_at_first(device: Device) -> None:
    with device.allocate(16, "bytes", hint="") as theirs:
        assert memory(theirs.handle, "u1", 16).tolist() == [0xA5] * 16
        assert theirs.handle % 256 == 0
