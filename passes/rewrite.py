"""The few moves that the rewrites share."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import fx

Join = Literal["concat", "concat_flat", "max"]
"""How several weights become one (see `joined_values`)."""


def call_like(graph: fx.Graph, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] = MappingProxyType({})) -> fx.Node:
    """Insert a call at the graph's insertion point; its meta["val"] is what the operator's shape function says."""
    node = graph.call_function(target, args, dict(kwargs))
    values = fx.map_arg(args, lambda arg: arg.meta["val"])
    tensor = next(value for value in values if isinstance(value, torch.Tensor))
    with tensor.fake_mode:  # type: ignore[attr-defined]
        node.meta["val"] = target(*values, **kwargs)
    return node


def replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Put a call in the place of `node`, and remove whatever only `node` needed."""
    with graph.inserting_before(node):
        replacement = call_like(graph, target, args)
    node.replace_all_uses_with(replacement)
    erase_unused(graph, node)
    return replacement


def join(graph: fx.Graph, weights: list[fx.Node], how: Join) -> fx.Node:
    """A new placeholder made of those of weights.

    Its meta["parts"] names them, or what they are made of themselves, and meta["join"] says how: `compiler/recipes.py` makes it from their
    values.
    """
    names = [weight.meta["ref"].removeprefix("weight:") for weight in weights]
    parts = [part for weight, name in zip(weights, names, strict=True) for part in weight.meta.get("parts", [name])]
    assert all(how != "max" and weight.meta["join"] == "concat" for weight in weights if "parts" in weight.meta)
    values: list[torch.Tensor] = [weight.meta["val"] for weight in weights]
    with graph.inserting_before(weights[0]):
        joined = graph.placeholder("_".join(weight.name for weight in weights))
    joined.meta = dict(weights[0].meta) | {"ref": f"weight:{_joined_name(names)}", "parts": parts, "join": how}
    with values[0].fake_mode:  # type: ignore[attr-defined]
        joined.meta["val"] = joined_values(values, how)
    return joined


def joined_values(values: list[torch.Tensor], how: Join) -> torch.Tensor:
    """One after another along their first axis, or without their shapes, or their largest numbers."""
    match how:
        case "concat":
            return torch.cat(values)
        case "concat_flat":
            return torch.cat([value.flatten() for value in values])
        case "max":
            return torch.stack(values).amax(0)


def _joined_name(names: list[str]) -> str:
    """layers.0.attention.q.weight, ...k.weight -> layers.0.attention.q+k.weight; of other depths, mlp.shared.up+shared_gate.weight"""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) > 1:
        same = [len(set(column)) == 1 for column in zip(*parts, strict=False)].index(False)
        parts = [[*part[:same], ".".join(part[same:-1]), part[-1]] for part in parts]
    columns = zip(*parts, strict=True)
    return ".".join(column[0] if len(set(column)) == 1 else "+".join(column) for column in columns)


def erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Remove a node without users, and then its inputs likewise."""
    pending, erased = [node], set()
    while pending:
        unused = pending.pop()
        if unused in erased or unused.op != "call_function" or unused.users:
            continue
        pending += unused.all_input_nodes
        graph.erase_node(unused)
        erased.add(unused)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`, if there is exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_matrix(node: fx.Node) -> bool:
    return len(node.meta["val"].shape) == 2


def same_shape(node: fx.Node, other: fx.Node) -> bool:
    return list(node.meta["val"].shape) == list(other.meta["val"].shape)


def rewrite_each(graph: fx.Graph, target: Any, rewrite: Callable[[fx.Graph, fx.Node], bool]) -> int:
    """Offer every call of `target`, in order, to `rewrite`; returns how many it took."""
    return sum(rewrite(graph, node) for node in graph.find_nodes(op="call_function", target=target))


def operands(node: Any, target: Any) -> tuple[fx.Node, fx.Node] | None:
    """Both arguments of a binary operator's call, if `node` is one of `target` with two tensors."""
    if not isinstance(node, fx.Node) or node.target is not target or len(node.args) != 2:
        return None
    left, right = node.args
    return (left, right) if isinstance(left, fx.Node) and isinstance(right, fx.Node) else None
