"""Graphs from templates: the bytes of every argument, the chain of nodes, and templates that do not fit."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_cuda import FakeCuda, Launched, fake_cubin, fake_cuda_installed
from fake_executor import tiny_manifest

from engine.artifacts.graph import GraphTemplate, KernelInfo, Node, Parameter, Place
from engine.errors import ArtifactError, DeviceError
from engine.runtime.cuda.device import Device
from engine.runtime.cuda.driver import Driver
from engine.runtime.cuda.graphs import instantiate
from engine.runtime.cuda.kernels import Kernels
from engine.runtime.cuda.region import Region

PARAMETERS: dict[str, list[Parameter]] = {"all": ["pointer", "int32", "int64", "float32", "pointer"], "none": [], "numbers": ["int64"] * 40}


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


class Setup:
    """A device with 1,024 bytes of workspace and 16 of a weight, and three kernels. launched: what a launch ran."""

    def __init__(self, fake: FakeCuda, directory: Path, held: ExitStack, **changes: int) -> None:
        self.device = held.enter_context(Device(Driver()))
        infos = []
        for name, parameters in PARAMETERS.items():
            (directory / name).write_bytes(fake_cubin(name))
            info = KernelInfo(file=name, function=name, threads=96, shared_bytes=0, parameters=parameters, registers=0, stack_bytes=0)
            infos.append(msgspec.structs.replace(info, **changes))
        fake.declare(directory, msgspec.structs.replace(tiny_manifest(), kernels=infos))
        self.kernels = Kernels(self.device, directory, infos, held)
        sizes = {"workspace": 1024, "weight:w": 16}
        self.regions = {name: Region(held.enter_context(self.device.allocate(n, name, hint="")).handle, n) for name, n in sizes.items()}
        self.launched: list[tuple[str, tuple[int, int, int], list[Any]]] = []
        self._held = held
        fake.on_launch(self._launch)

    def _launch(self, node: Launched) -> None:
        assert (node.block, node.shared_bytes) == ((96, 1, 1), 0)
        self.launched.append((node.function, node.grid, node.values(PARAMETERS[node.function])))

    def run(self, nodes: list[Node], bases: tuple[str, ...] = ("workspace", "weight:w")) -> None:
        template = GraphTemplate(bases=list(bases), nodes=nodes, outputs={})
        graph = self._held.enter_context(instantiate(self.device, template, self.kernels, self.regions))
        stream = self._held.enter_context(self.device.stream())
        self.device.driver.call("cuGraphLaunch", graph.handle, stream.handle)
        self.device.driver.call("cuStreamSynchronize", stream.handle)


@pytest.fixture
def setup(fake: FakeCuda, tmp_path: Path) -> Iterator[Setup]:
    with ExitStack() as held:
        yield Setup(fake, tmp_path, held)


def all_kinds(workspace: int = 0, int32: Any = -1, int64: Any = -(2**40), float32: Any = 0.375, last: Any = 0) -> Node:
    return Node(kernel=0, grid=(7, 65535, 3), arguments=[Place(base=0, offset=workspace), int32, int64, float32, last])


def test_every_kind_of_argument(setup: Setup) -> None:
    numbers = [2**62 - index for index in range(40)]
    nodes = [
        all_kinds(),
        Node(kernel=1, grid=(1, 1, 1), arguments=[]),
        all_kinds(1023, 2**31 - 1, 2**63 - 1, 3, Place(base=1, offset=15)),
        Node(kernel=2, grid=(2**31 - 1, 1, 1), arguments=[*numbers]),
    ]
    setup.run(nodes)
    workspace, weight = setup.regions["workspace"].address, setup.regions["weight:w"].address
    assert setup.launched == [
        ("all", (7, 65535, 3), [workspace, -1, -(2**40), 0.375, 0]),
        ("none", (1, 1, 1), []),
        ("all", (7, 65535, 3), [workspace + 1023, 2**31 - 1, 2**63 - 1, 3.0, weight + 15]),
        ("numbers", (2**31 - 1, 1, 1), numbers),
    ]


def test_a_kernel_without_arguments_alone(setup: Setup) -> None:
    setup.run([Node(kernel=1, grid=(1, 1, 1), arguments=[])])
    assert setup.launched == [("none", (1, 1, 1), [])]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (all_kinds(1024), "points outside of workspace"),
        (all_kinds(last=Place(base=1, offset=16)), "points outside of weight:w"),
        (all_kinds(last=8), "passes what its kernel does not take"),
        (all_kinds(int32=2**31), "passes what its kernel does not take"),
        (all_kinds(int32=Place(base=0, offset=0)), "passes what its kernel does not take"),
        (all_kinds(int64=0.5), "passes a number that its kernel does not take"),
        (all_kinds(int64=2**63), "passes a number that its kernel does not take"),
        (Node(kernel=0, grid=(1, 1, 1), arguments=[1]), "other arguments than its kernel"),
        (Node(kernel=3, grid=(1, 1, 1), arguments=[]), "a kernel that is not there"),
        (Node(kernel=-1, grid=(1, 1, 1), arguments=[]), "a kernel that is not there"),
    ],
)
def test_templates_that_do_not_fit(setup: Setup, node: Node, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        setup.run([all_kinds(), node])


def test_a_base_that_is_not_there(setup: Setup) -> None:
    with pytest.raises(ArtifactError, match="it uses weight:v, which is not there"):
        setup.run([all_kinds()], ("workspace", "weight:v"))


def test_a_template_without_launches(setup: Setup) -> None:
    with pytest.raises(ArtifactError, match="it launches nothing"):
        setup.run([])


@pytest.mark.parametrize("grid", [(1, 65536, 1), (2**31, 1, 1)])
def test_what_the_driver_refuses_is_told(setup: Setup, fake: FakeCuda, grid: tuple[int, int, int]) -> None:
    with pytest.raises(DeviceError, match="cuGraphAddKernelNode_v2 failed: CUDA_ERROR_INVALID_VALUE"):
        setup.run([Node(kernel=1, grid=grid, arguments=[])])
    assert "a grid of" in fake.violations
    assert "graph" not in fake.alive()
    fake.library.fake_forget_violations()


@pytest.mark.parametrize("shared_bytes", [48 << 10, (48 << 10) + 1, 232448, 232449])
def test_shared_memory_is_asked_for(fake: FakeCuda, tmp_path: Path, shared_bytes: int) -> None:
    with ExitStack() as held:
        setup = Setup(fake, tmp_path, held, shared_bytes=shared_bytes)
        fake.on_launch(lambda node: setup.launched.append((node.function, node.grid, [node.shared_bytes])))
        node = Node(kernel=1, grid=(1, 1, 1), arguments=[])
        if shared_bytes <= 232448:
            setup.run([node])
            assert setup.launched == [("none", (1, 1, 1), [shared_bytes])]
        else:
            with pytest.raises(DeviceError, match="the kernel none of none: cuFuncSetAttribute failed"):
                setup.run([node])
            fake.library.fake_forget_violations()
