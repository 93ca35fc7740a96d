"""The driver calls of the runtime on a real GPU: memory, weights, and a graph of compiled code."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.artifacts.graph import GraphTemplate, KernelInfo, Node, Place
from engine.errors import DeviceError
from engine.runtime.cuda.bandwidth import memory_bandwidth
from engine.runtime.cuda.device import Device, Resource
from engine.runtime.cuda.driver import Driver
from engine.runtime.cuda.graphs import instantiate
from engine.runtime.cuda.kernels import Kernels
from engine.runtime.cuda.region import Region
from engine.runtime.cuda.weights import Layout, upload
from engine.runtime.weights import Span

NODES = 330


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.fixture
def device(real_gpu: str, held: ExitStack) -> Device:
    return held.enter_context(Device(Driver()))


def fetch(device: Device, address: int, nbytes: int, stream: Resource) -> NDArray[np.uint8]:
    with device.pinned(nbytes) as ours:
        device.driver.call("cuMemcpyDtoHAsync_v2", ours.handle, address, nbytes, stream.handle)
        device.driver.call("cuStreamSynchronize", stream.handle)
        return ours.bytes.copy()


def test_weights_arrive(device: Device, held: ExitStack, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    content = [random.integers(0, 256, size, np.uint8) for size in (1, 300, 70 << 20, 256, 5 << 20)]
    (tmp_path / "weights").write_bytes(b"".join(part.tobytes() for part in content))
    begins = np.cumsum([0, *map(len, content)])
    layout = Layout({f"{index}": Span(tmp_path / "weights", int(begins[index]), len(part)) for index, part in enumerate(content)})
    memory = held.enter_context(device.allocate(layout.nbytes, "weights", hint=""))
    upload(device, layout, memory.handle, staging_bytes=16 << 20)
    stream = held.enter_context(device.stream())
    for index, region in enumerate(layout.regions(memory.handle).values()):
        assert np.array_equal(fetch(device, region.address, region.nbytes, stream), content[index])


def test_a_graph_of_compiled_code_runs_in_order(device: Device, held: ExitStack, tmp_path: Path) -> None:
    """Each node halves the numbers or doubles them and the next one; only one order gives the result."""
    from triton_scale_kernel import PARAMETERS, compile_scale_kernel

    (tmp_path / "a.cubin").write_bytes(compile_scale_kernel())
    info = KernelInfo(
        file="a.cubin", function="scale_kernel", threads=128, shared_bytes=0, parameters=PARAMETERS, registers=0, stack_bytes=0
    )
    kernels = Kernels(device, tmp_path, [info], held)
    memory = held.enter_context(device.allocate(1024, "numbers", hint=""))
    stream = held.enter_context(device.stream())
    random = np.random.default_rng(1)
    numbers = random.integers(1, 9, 256).astype(np.float32)
    expected = numbers.copy()
    nodes = []
    for index in range(NODES):
        at, count, factor = int(random.integers(0, 128)), int(random.integers(1, 129)), 0.5 if index % 2 else 2.0
        here = slice(at, at + count)
        expected[here] = expected[here] * np.float32(factor) + 1
        nodes.append(Node(kernel=0, grid=(1, 1, 1), arguments=[Place(base=0, offset=0), count, at, factor, 0, 0]))
    template = GraphTemplate(bases=["workspace"], nodes=nodes, outputs={})
    graph = held.enter_context(instantiate(device, template, kernels, {"workspace": Region(memory.handle, 1024)}))
    with device.pinned(1024) as ours:
        ours.bytes.view(np.float32)[:] = numbers
        device.driver.call("cuMemcpyHtoDAsync_v2", memory.handle, ours.handle, 1024, stream.handle)
        device.driver.call("cuGraphLaunch", graph.handle, stream.handle)
        assert np.array_equal(fetch(device, memory.handle, 1024, stream).view(np.float32), expected)


def test_bandwidth(device: Device) -> None:
    assert memory_bandwidth(device) > 100e9, f"{device.name} has slower memory than any GPU that there are targets for"


def test_too_much_is_refused_with_figures(device: Device) -> None:
    free, total = device.memory()
    with pytest.raises(DeviceError, match=rf"everything need {total * 2:,} bytes of the GPU's memory; of its {total:,} bytes"):
        device.allocate(total * 2, "everything", hint="")
    assert 0 < free <= total
