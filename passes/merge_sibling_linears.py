"""Linears that read the same activations become one.

    q = linear(x, w_q), k = linear(x, w_k), v = linear(x, w_v)
                ->  qkv = linear(x, w_q|w_k|w_v); q, k, v = qkv[:, :a], qkv[:, a:b], qkv[:, b:]

Why: one call instead of two or three, each of which starts and ends the threads' common work;
and longer runs of weights to stream. The slices are views, which cost nothing.

When not: when formats differ (a GGUF file may keep some matrices at more bits), when a weight
is used twice (a tied embedding), or when all but the last do not fill whole panels. Numerics
do not change: every output is computed as before.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import fx

from ..kernels.linear.formats import PANEL
from .linears import is_linear
from .rewrite import call_like, join, only_user

_SLICE = torch.ops.aten.slice.Tensor


def merge_sibling_linears(graph: fx.Graph) -> int:
    """Merge siblings everywhere in `graph`; returns how many linears disappeared.

    The merged weight is a new placeholder whose meta["parts"] names the weights it is made of.
    """
    families: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if is_linear(node) and _is_simple(node):
            families[_family(node)].append(node)
    return sum(_merge(graph, siblings) for siblings in families.values() if len(siblings) > 1)


def _is_simple(node: fx.Node) -> bool:
    weights = [arg for arg in node.args[1:3] if isinstance(arg, fx.Node)]
    return node.args[3] is None and all(weight.op == "placeholder" and only_user(weight) is node for weight in weights)


def _family(node: fx.Node) -> Any:
    x, weight, bias = node.args[:3]
    assert isinstance(weight, fx.Node)
    return x, node.target, weight.meta["format"], bias is None


def _merge(graph: fx.Graph, siblings: list[fx.Node]) -> int:
    widths: list[int] = [node.args[4] for node in siblings]  # type: ignore[misc]
    if any(width % PANEL for width in widths[:-1]):
        return 0
    first = siblings[0]
    weight = join(graph, [node.args[1] for node in siblings], "concat")  # type: ignore[misc]
    bias = None if first.args[2] is None else join(graph, [node.args[2] for node in siblings], "concat")  # type: ignore[misc]
    with graph.inserting_before(first):
        merged = call_like(graph, first.target, (first.args[0], weight, bias, None, sum(widths)))
        start = 0
        for node, width in zip(siblings, widths, strict=True):
            node.replace_all_uses_with(call_like(graph, _SLICE, (merged, 1, start, start + width)))
            start += width
    for node in siblings:
        graph.erase_node(node)
    return len(siblings) - 1
