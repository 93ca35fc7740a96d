"""Real code, compiled for sm_90 without a GPU, through the loader: names, parameters and the kind of GPU."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cubin import parameter_sizes, sections
from fake_cuda import Launched, fake_cuda_installed
from fake_executor import tiny_manifest
from triton_scale_kernel import PARAMETERS, compile_scale_kernel

from engine.artifacts.graph import GraphTemplate, KernelInfo, Node, Parameter, Place
from engine.errors import DeviceError
from engine.runtime.cuda.device import Device
from engine.runtime.cuda.driver import Driver
from engine.runtime.cuda.graphs import instantiate
from engine.runtime.cuda.kernels import Kernels
from engine.runtime.cuda.region import Region


@pytest.fixture(scope="module")
def cubin() -> bytes:
    return compile_scale_kernel()


def write(directory: Path, cubin: bytes, parameters: list[Parameter]) -> list[KernelInfo]:
    (directory / "a.cubin").write_bytes(cubin)
    info = KernelInfo(
        file="a.cubin", function="scale_kernel", threads=128, shared_bytes=0, parameters=parameters, registers=0, stack_bytes=0
    )
    return [info]


def test_a_cubin_tells_its_parameters(cubin: bytes) -> None:
    assert parameter_sizes(cubin, "scale_kernel") == [8, 4, 8, 4, 8, 8]
    assert parameter_sizes(cubin, "other") is None
    assert ".text.scale_kernel" in sections(cubin)


def test_the_whole_image_and_every_argument_arrive(cubin: bytes, tmp_path: Path) -> None:
    launched: list[bytes] = []
    values: list[list[Any]] = []

    def run(node: Launched) -> None:
        launched.append(node.image)
        values.append(node.values(PARAMETERS))

    with fake_cuda_installed() as fake, ExitStack() as held:
        infos = write(tmp_path, cubin, PARAMETERS)
        fake.declare(tmp_path, msgspec.structs.replace(tiny_manifest(), kernels=infos))
        fake.on_launch(run)
        device = held.enter_context(Device(Driver()))
        kernels = Kernels(device, tmp_path, infos, held)
        memory = held.enter_context(device.allocate(512, "x", hint="")).handle
        node = Node(kernel=0, grid=(1, 1, 1), arguments=[Place(base=0, offset=256), 5, 2**40, 0.5, 0, 0])
        template = GraphTemplate(bases=["workspace"], nodes=[node], outputs={})
        graph = held.enter_context(instantiate(device, template, kernels, {"workspace": Region(memory, 512)}))
        stream = held.enter_context(device.stream())
        device.driver.call("cuGraphLaunch", graph.handle, stream.handle)
        device.driver.call("cuStreamSynchronize", stream.handle)
    assert launched == [cubin]
    assert values == [[memory + 256, 5, 2**40, 0.5, 0, 0]]


def test_parameters_that_the_code_does_not_have(cubin: bytes, tmp_path: Path) -> None:
    with fake_cuda_installed() as fake:
        for parameters in (PARAMETERS[:-1], [*PARAMETERS[:1], *PARAMETERS[2:], PARAMETERS[1]]):
            manifest = msgspec.structs.replace(tiny_manifest(), kernels=write(tmp_path, cubin, parameters))
            with pytest.raises(AssertionError, match="scale_kernel"):
                fake.declare(tmp_path, manifest)


def test_code_for_another_gpu(cubin: bytes) -> None:
    with fake_cuda_installed() as fake:
        fake.library.fake_set_capability(100)
        with Device(Driver()) as device, pytest.raises(DeviceError, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
            device.module(cubin)
