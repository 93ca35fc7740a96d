"""The few moves that the rewrites share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx


def call_like(graph: fx.Graph, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Insert a call at the graph's insertion point; its meta["val"] is what the operator's shape function says."""
    node = graph.call_function(target, args)
    values = fx.map_arg(args, lambda arg: arg.meta["val"])
    tensor = next(value for value in values if isinstance(value, torch.Tensor))
    with tensor.fake_mode:  # type: ignore[attr-defined]
        node.meta["val"] = target(*values)
    return node


def replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Put a call in the place of `node`, and remove whatever only `node` needed."""
    with graph.inserting_before(node):
        replacement = call_like(graph, target, args)
    node.replace_all_uses_with(replacement)
    erase_unused(graph, node)
    return replacement


def erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Remove a node without users, and then its inputs likewise."""
    if node.op != "call_function" or node.users:
        return
    sources = node.all_input_nodes
    graph.erase_node(node)
    for source in sources:
        erase_unused(graph, source)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`, if there is exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def rewrite_each(graph: fx.Graph, target: Any, rewrite: Callable[[fx.Graph, fx.Node], bool]) -> int:
    """Offer every call of `target`, in order, to `rewrite`; returns how many it took."""
    return sum(rewrite(graph, node) for node in graph.find_nodes(op="call_function", target=target))


def operands(node: Any, target: Any) -> tuple[fx.Node, fx.Node] | None:
    """Both arguments of a binary operator's call, if `node` is one of `target` with two tensors."""
    if not isinstance(node, fx.Node) or node.target is not target or len(node.args) != 2:
        return None
    left, right = node.args
    return (left, right) if isinstance(left, fx.Node) and isinstance(right, fx.Node) else None
