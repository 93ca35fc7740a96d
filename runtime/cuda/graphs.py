"""CUDA graphs from templates: bases become addresses, arguments become bytes, nodes become a chain.

A step of a large model has hundreds of launches with a dozen arguments each, and a server has
dozens of graphs: so all arguments and all node descriptions of a graph are written by numpy at
once, and Python's share per node is one call of the driver.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts.graph import GraphTemplate, Node, Parameter, Place
from ...errors import ArtifactError
from .device import Device, Resource
from .driver import KERNEL_NODE_FIELDS
from .kernels import Kernels
from .region import Region

ARGUMENT_BYTES = 8
"""Every argument gets as much room; the driver reads as much of it as the parameter takes."""
_KINDS: dict[Parameter, int] = {"pointer": 0, "int32": 1, "int64": 2, "float32": 3}
_NO_BASE = -1


def instantiate(device: Device, template: GraphTemplate, kernels: Kernels, regions: Mapping[str, Region]) -> Resource:
    """An executable graph of the template's launches, one after another; the resource is what `cuGraphLaunch` takes.

    regions: memory by the name of its base. Raises ArtifactError for a template that passes what
    its kernels do not take or points outside of the memory there is.
    """
    numbers = np.array([node.kernel for node in template.nodes])
    if numbers.size == 0 or numbers.min() < 0 or numbers.max() >= len(kernels.infos):
        raise _damaged("it launches nothing, or a kernel that is not there")
    arguments, counts = pack_arguments(template, kernels, regions)
    pointers = arguments.ctypes.data + ARGUMENT_BYTES * np.arange(len(arguments), dtype=np.uint64)
    nodes = _nodes(template.nodes, kernels)
    nodes["kernelParams"] = pointers.ctypes.data + 8 * (np.cumsum(counts) - counts)
    return _make(device, nodes)  # which copies the arguments: they may go now


def pack_arguments(
    template: GraphTemplate, kernels: Kernels, regions: Mapping[str, Region]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """All arguments of all nodes in order, 8 bytes each, and how many each node has."""
    counts = np.array([len(node.arguments) for node in template.nodes])
    kinds = [kernels.infos[node.kernel].parameters for node in template.nodes]
    if counts.tolist() != [len(kind) for kind in kinds]:
        raise _damaged("a launch has other arguments than its kernel")
    kind = np.array([_KINDS[parameter] for parameters in kinds for parameter in parameters])
    flat = [argument for node in template.nodes for argument in node.arguments]
    base = np.array([argument.base if type(argument) is Place else _NO_BASE for argument in flat], np.int64)
    values: list[Any] = [argument.offset if type(argument) is Place else argument for argument in flat]
    floats = np.flatnonzero(kind == _KINDS["float32"])
    with np.errstate(over="ignore"):
        reals = np.array([values[index] for index in floats], np.float64).astype(np.float32)
    if not np.isfinite(reals).all():
        raise _damaged("a launch passes a number that its kernel does not take")
    for index in floats:
        values[index] = 0
    value = _integers(values)
    _check(kind, base, value)
    packed = _resolve(template, regions, base, value)
    packed[floats] = reals.view(np.uint32)
    return packed, counts


def _integers(values: list[Any]) -> NDArray[np.int64]:
    numbers = np.array([0, *values])  # without the zero an empty list would be an array of floats
    if numbers.dtype != np.int64:
        raise _damaged("a launch passes a number that its kernel does not take")
    return numbers[1:]


def _check(kind: NDArray[np.int64], base: NDArray[np.int64], value: NDArray[np.int64]) -> None:
    """Memory goes where a pointer is wanted, and nothing else but a null pointer; 32 bits hold what they are to hold."""
    is_memory = base != _NO_BASE
    wants_memory = (kind == _KINDS["pointer"]) & (is_memory | (value != 0))
    small = value == value.astype(np.int32)
    if not np.array_equal(is_memory, wants_memory) or not small[kind == _KINDS["int32"]].all():
        raise _damaged("a launch passes what its kernel does not take")


def _resolve(
    template: GraphTemplate, regions: Mapping[str, Region], base: NDArray[np.int64], value: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Numbers stay, offsets become addresses."""
    unknown = [name for name in template.bases if name not in regions]
    if unknown:
        raise _damaged(f"it uses {unknown[0]}, which is not there")
    known = [regions[name] for name in template.bases]
    addresses = np.array([*(region.address for region in known), 0], np.uint64)  # the last is what _NO_BASE finds
    ends = np.array([*(region.nbytes for region in known), 0], np.int64)
    outside = np.flatnonzero((base != _NO_BASE) & ((value < 0) | (value >= ends[base])))
    if outside.size:
        raise _damaged(f"it points outside of {template.bases[base[outside[0]]]}")
    return addresses[base] + value.view(np.uint64)


def _nodes(nodes: list[Node], kernels: Kernels) -> NDArray[np.void]:
    table = np.zeros(len(nodes), np.dtype(KERNEL_NODE_FIELDS))
    table["func"] = [kernels.function(node.kernel) for node in nodes]
    table["grid"] = [node.grid for node in nodes]
    table["block"] = 1
    table["block"][:, 0] = [kernels.infos[node.kernel].threads for node in nodes]
    table["sharedMemBytes"] = [kernels.infos[node.kernel].shared_bytes for node in nodes]
    return table


def _make(device: Device, nodes: NDArray[np.void]) -> Resource:
    driver, graph, executable = device.driver, ctypes.c_void_p(), ctypes.c_void_p()
    add, size = driver.function("cuGraphAddKernelNode_v2"), nodes.itemsize
    handles = np.zeros(len(nodes) + 1, np.uint64)  # the first stands for what the first node waits for: nothing
    handle, description = handles.ctypes.data, nodes.ctypes.data
    driver.call("cuGraphCreate", ctypes.byref(graph), 0)
    with Resource(driver, graph.value or 0, "cuGraphDestroy"):
        for index in range(len(nodes)):
            result = add(handle + 8, graph, handle, min(index, 1), description)
            if result:
                raise driver.error("cuGraphAddKernelNode_v2", result)
            handle += 8
            description += size
        driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
    assert executable.value is not None
    return Resource(driver, executable.value, "cuGraphExecDestroy")


def _damaged(why: str) -> ArtifactError:
    return ArtifactError(f"a graph template does not fit the artifact: {why}", hint="build or copy the artifact again")
