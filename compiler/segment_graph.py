"""The canonical form of a piece of graph: plain data, free of names and weights.

Two pieces with the same form are the same segment. The form's JSON text is what the store
hashes, and also what the lowering process receives, so that nothing can influence a compiled
segment without being in its key.

A form is {"inputs": [[dtype, [dims]]] (or [dtype, [dims], [strides]] for a view), "nodes": [[operator, args, kwargs]], "outputs": [ids]}.
Value ids count the inputs first, then the nodes. A dimension is a number, or "dN" for the N-th
distinct symbolic size. In arguments {"v": id} is a value, {"dtype": name} a torch dtype, and {"format": name} how a
tensor lies in memory.
"""

import json
import operator
from typing import Any

import torch
from torch import fx

from ..errors import BuildError

Form = dict[str, Any]


def encode(inputs: list[fx.Node], nodes: list[fx.Node], outputs: list[fx.Node], *, strided: bool = False) -> Form:
    """The canonical form of `nodes` as a function of `inputs` (fake tensors in meta["val"]). strided: inputs may be views."""
    ids = {node: index for index, node in enumerate([*inputs, *nodes])}
    dims: dict[Any, str] = {}
    return {
        "inputs": [_encode_input(node.meta["val"], dims, strided) for node in inputs],
        "nodes": [[_operator_name(node), _encode(node.args, ids), _encode(dict(sorted(node.kwargs.items())), ids)] for node in nodes],
        "outputs": [ids[node] for node in outputs],
    }


def text(form: Form) -> str:
    """The form's canonical JSON text."""
    return json.dumps(form, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parts(form_text: str) -> dict[str, str]:
    """A form's parts, each as canonical text: together they say what the form's text does."""
    return {name: json.dumps(part, separators=(",", ":"), allow_nan=False) for name, part in json.loads(form_text).items()}


def decode(form: Form, device: str = "cpu") -> fx.GraphModule:
    """A module that computes the form on `device`: takes its inputs in order, returns a tuple of its outputs."""
    graph = fx.Graph()
    values = [graph.placeholder(f"arg{index}") for index in range(len(form["inputs"]))]
    for name, args, kwargs in form["nodes"]:
        values.append(graph.call_function(_operator(name), tuple(_decode(args, values, device)), _decode(kwargs, values, device)))
    graph.output(tuple(values[index] for index in form["outputs"]))
    return fx.GraphModule(torch.nn.Module(), graph)


def _encode_input(value: Any, dims: dict[Any, str], strided: bool) -> list[Any]:
    if not isinstance(value, torch.Tensor):
        raise BuildError("a segment would take a symbolic size as input; the model must derive sizes from tensors (use -1 in views)")
    if not strided and not value.is_contiguous():
        raise BuildError("a segment would take a tensor that is not contiguous")
    shape: list[Any] = list(value.shape)
    sizes = [size if isinstance(size, int) else dims.setdefault(str(size.node.expr), f"d{len(dims)}") for size in shape]
    strides = [] if value.is_contiguous() else [[int(stride) for stride in value.stride()]]
    return [str(value.dtype).removeprefix("torch."), sizes, *strides]


def _operator_name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    raise BuildError(f"the graph has an operator that cannot be compiled ahead of time: {node.target}")


def _operator(name: str) -> Any:
    if name == "getitem":
        return operator.getitem
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def _encode(value: Any, ids: dict[fx.Node, int]) -> Any:
    match value:
        case fx.Node():
            return {"v": ids[value]}
        case tuple() | list():
            return [_encode(item, ids) for item in value]
        case dict():
            return {key: _encode(item, ids) for key, item in value.items()}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case torch.memory_format():
            return {"format": str(value).removeprefix("torch.")}
        case None | bool() | int() | float() | str():
            return value
        case torch.device() if value.type == "cpu":
            return {"device": "cpu"}
    raise BuildError(f"the graph has an argument that cannot be written down: {value!r}")


def _decode(value: Any, values: list[fx.Node], device: str) -> Any:
    match value:
        case {"v": index}:
            return values[index]
        case {"dtype": name} | {"format": name}:
            return getattr(torch, name)
        case {"device": _}:
            return torch.device(device)
        case dict():
            return {key: _decode(item, values, device) for key, item in value.items()}
        case list():
            return [_decode(item, values, device) for item in value]
    return value
