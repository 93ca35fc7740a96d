"""Linears that read the same activations become one.

    q = linear(x, w_q), k = linear(x, w_k), v = linear(x, w_v)
                ->  qkv = linear(x, w_q|w_k|w_v); q, k, v = qkv[:, :a], qkv[:, a:b], qkv[:, b:]

Why: one call instead of two or three, each of which starts and ends the threads' common work;
and longer runs of weights to stream. The slices are views, which cost nothing.

When not: when formats differ (a GGUF file may keep some matrices at more bits) or multipliers, when a weight
is used twice (a tied embedding), or when all but the last do not fill whole panels. Numerics
do not change: every output is computed as before.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import fx

from ..kernels.linear.formats import PANEL
from .linears import is_linear, linear_arguments
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
    _, weight, bias, residual, *_ = linear_arguments(node)
    weights = [weight] if bias is None else [weight, bias]
    return residual is None and all(weight.op == "placeholder" and only_user(weight) is node for weight in weights)


def _family(node: fx.Node) -> Any:
    linear = linear_arguments(node)
    return linear.x, node.target, linear.weight.meta["format"], linear.bias is None, linear.multiplier


def _merge(graph: fx.Graph, siblings: list[fx.Node]) -> int:
    linears = [linear_arguments(node) for node in siblings]
    widths = [linear.out_features for linear in linears]
    if any(width % PANEL for width in widths[:-1]):
        return 0
    weight = join(graph, [linear.weight for linear in linears], "concat")
    biases = [linear.bias for linear in linears if linear.bias is not None]
    bias = join(graph, biases, "concat") if biases else None
    with graph.inserting_before(siblings[0]):
        arguments = linears[0]._replace(weight=weight, bias=bias, out_features=sum(widths))
        merged = call_like(graph, siblings[0].target, tuple(arguments))
        start = 0
        for node, width in zip(siblings, widths, strict=True):
            node.replace_all_uses_with(call_like(graph, _SLICE, (merged, 1, start, start + width)))
            start += width
    for node in siblings:
        graph.erase_node(node)
    return len(siblings) - 1
