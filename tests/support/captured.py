"""A step's launches one by one, and what the driver makes of them when a stream is captured: what a template is compared with."""

import ctypes
import os
from typing import Any, NamedTuple

import numpy as np

from engine.artifacts.graph import GraphTemplate, Parameter
from engine.runtime.cuda.device import Resource
from engine.runtime.cuda.driver import KERNEL_NODE_FIELDS, LIBRARY_VARIABLE
from engine.runtime.cuda.executor import CudaExecutor
from engine.runtime.cuda.graphs import ARGUMENT_BYTES, pack_arguments

_CAPTURE_THREAD_LOCAL = 1
_BYTES: dict[Parameter, int] = {"pointer": 8, "int32": 4, "int64": 8, "float32": 4}
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuLaunchKernel": (ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    "cuStreamBeginCapture_v2": (ctypes.c_void_p, ctypes.c_int),
    "cuStreamEndCapture": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphGetNodes": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphGetEdges": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphKernelNodeGetParams_v2": (ctypes.c_void_p, ctypes.c_void_p),
}


class Launched(NamedTuple):
    """A kernel node. arguments: the bytes of each parameter."""

    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    arguments: list[bytes]


class Step:
    """One graph of a loaded artifact, taken apart."""

    def __init__(self, executor: CudaExecutor, number: int) -> None:
        self._executor = executor
        self._library = ctypes.CDLL(os.environ.get(LIBRARY_VARIABLE) or "libcuda.so.1")
        for name, arguments in _SIGNATURES.items():
            getattr(self._library, name).argtypes = arguments
        self._kernels = executor.graphs.kernels
        self._template: GraphTemplate
        self._template, self._regions = executor.graphs.resolve(number)

    def nodes(self) -> list[Launched]:
        """What the template says, with addresses."""
        packed, counts = pack_arguments(self._template, self._kernels, self._regions)
        rest = iter(packed.tobytes()[at : at + ARGUMENT_BYTES] for at in range(0, packed.nbytes, ARGUMENT_BYTES))
        found = []
        for node, count in zip(self._template.nodes, counts, strict=True):
            info = self._kernels.infos[node.kernel]
            arguments = [next(rest)[: _BYTES[kind]] for kind, _ in zip(info.parameters, range(count), strict=True)]
            found.append(Launched(self._kernels.function(node.kernel), node.grid, (info.threads, 1, 1), info.shared_bytes, arguments))
        return found

    def poison(self) -> None:
        """The workspace becomes NaN, so that nothing of an earlier run is left to be found."""
        workspace = self._regions["workspace"]
        self._executor.device.driver.call("cuMemsetD8Async", workspace.address, 0xFF, workspace.nbytes, self._executor.stream.handle)

    def launch_one_by_one(self) -> None:
        for node in self.nodes():
            values = [ctypes.create_string_buffer(argument, ARGUMENT_BYTES) for argument in node.arguments]
            pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            self._call("cuLaunchKernel", node.function, *node.grid, *node.block, node.shared_bytes, self._stream, pointers, None)

    def capture(self) -> Resource:
        """The graph that the driver makes of `launch_one_by_one`."""
        graph = ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)
        self.launch_one_by_one()
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        assert graph.value is not None
        return Resource(self._executor.device.driver, graph.value, "cuGraphDestroy")

    def captured_nodes(self, graph: Resource) -> list[Launched]:
        """The nodes of a captured graph, which must be a chain, in its order."""
        count = len(self._template.nodes)
        handles, found = (ctypes.c_void_p * count)(), ctypes.c_size_t(count)
        self._call("cuGraphGetNodes", graph.handle, handles, ctypes.byref(found))
        assert found.value == count
        befores, afters, edges = (ctypes.c_void_p * count)(), (ctypes.c_void_p * count)(), ctypes.c_size_t(count)
        self._call("cuGraphGetEdges", graph.handle, befores, afters, ctypes.byref(edges))
        after = dict(zip(befores[: edges.value], afters[: edges.value], strict=True))
        assert len(after) == edges.value == count - 1, "the captured graph is no chain"
        (node,) = set(handles) - set(after.values())
        chain = [node]
        while (node := after.get(node)) is not None:
            chain.append(node)
        return [self._node(handle, planned) for handle, planned in zip(chain, self._template.nodes, strict=True)]

    def launch(self, graph: Resource) -> None:
        """Instantiate a graph, run it once, and wait."""
        driver, executable = self._executor.device.driver, ctypes.c_void_p()
        driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph.handle, 0)
        assert executable.value is not None
        with Resource(driver, executable.value, "cuGraphExecDestroy"):
            driver.call("cuGraphLaunch", executable.value, self._stream)
            driver.call("cuStreamSynchronize", self._stream)

    @property
    def _stream(self) -> int:
        return self._executor.stream.handle

    def _node(self, handle: int, planned: Any) -> Launched:
        params = np.zeros(1, np.dtype(KERNEL_NODE_FIELDS))
        self._call("cuGraphKernelNodeGetParams_v2", handle, params.ctypes.data)
        (node,) = params
        kinds = self._kernels.infos[planned.kernel].parameters
        pointers = (ctypes.c_void_p * len(kinds)).from_address(int(node["kernelParams"]))
        arguments = [ctypes.string_at(pointer, _BYTES[kind]) for pointer, kind in zip(pointers, kinds, strict=True)]
        return Launched(
            int(node["func"]), tuple(node["grid"].tolist()), tuple(node["block"].tolist()), int(node["sharedMemBytes"]), arguments
        )

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, name)(*arguments)
        assert result == 0, f"{name} failed with {result}"
