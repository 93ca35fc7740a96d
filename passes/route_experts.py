"""A router's choice and weights become one operator.

    scores = softmax(logits)  or sigmoid, sqrt(softplus), the logits themselves
    chosen = sort(scores (+ choice_bias), outside the best groups masked)[:, :k]
    weights = gather(scores, chosen), of the k a softmax or a sigmoid, (/ max(their sum + eps, least)) (* scale) (* expert_scale[chosen])
    zeros.scatter(chosen, weights)    ->  route_table(route(logits, choice_bias, expert_scale, k, ...), experts)

Why: a dozen small operators over [T, E], one of them a sort of every row, become one pass over each row; and what it gives,
k experts with k weights, is what `group_experts` groups rows by.

When not: when anything else reads what is in between. Of equal choices the lower index wins, here as there. Numerics change only as
far as exponentials are rounded otherwise.
"""

from typing import Any, NamedTuple

import torch
from torch import fx

from ..kernels.moe.options import RouteOptions
from .rewrite import call_like, operands, replace, rewrite_each

_aten = torch.ops.aten
_SCORES = {_aten.softmax.int: "softmax", _aten.sigmoid.default: "sigmoid"}


class _Weights(NamedTuple):
    scores: fx.Node
    expert_scale: fx.Node | None
    options: dict[str, Any]


class _Choice(NamedTuple):
    bias: fx.Node | None
    options: dict[str, Any]


def route_experts(graph: fx.Graph) -> int:
    """Rewrite every table of weights that a router makes; returns how many."""
    return rewrite_each(graph, _aten.scatter.src, _route)


def _route(graph: fx.Graph, table: fx.Node) -> bool:
    zeros, dim, chosen, weights = table.args
    best = _best(chosen)
    if best is None or dim != 1 or not _calls(zeros, _aten.zeros_like.default):
        return False
    choice, count = best
    weighed = _weights(weights, chosen)
    chosen_by = None if weighed is None else _choice(choice, weighed.scores)
    if weighed is None or chosen_by is None:
        return False
    score, logits = _score(weighed.scores)
    options = RouteOptions(chosen=count, score=score, **weighed.options, **chosen_by.options)
    experts = int(logits.meta["val"].shape[1])
    with graph.inserting_before(table):
        routes = call_like(graph, torch.ops.engine.route.default, (logits, chosen_by.bias, weighed.expert_scale, *options.arguments))
    replace(graph, table, torch.ops.engine.route_table.default, (routes, experts))
    return True


def _best(chosen: Any) -> tuple[fx.Node, int] | None:
    """What is sorted, and how many of the first are taken, where `chosen` is that."""
    indices, count = _first_of(chosen)
    order: Any = indices.args[0] if indices.op == "call_function" and indices.args[1:] == (1,) else None
    if not _calls(order, _aten.sort.stable) or order.kwargs != {"stable": True, "dim": 1, "descending": True}:
        return None
    return order.args[0], count


def _first_of(node: Any) -> tuple[Any, int]:
    """What the first elements are taken of, along the last axis, and how many: all of them, where there is no slice."""
    dim = len(node.meta["val"].shape) - 1
    count = int(node.meta["val"].shape[dim])
    return (node.args[0] if _calls(node, _aten.slice.Tensor) and node.args[1:3] == (dim, 0) else node), count


def _weights(node: Any, chosen: Any) -> _Weights | None:
    options: dict[str, Any] = {}
    expert_scale = None
    if (scaled := operands(node, _aten.mul.Tensor)) is not None and _calls(scaled[1], _aten.index.Tensor):
        index: Any = scaled[1].args
        if index[1] != [chosen]:
            return None
        node, expert_scale = scaled[0], index[0]
    if _calls(node, _aten.mul.Tensor) and isinstance(node.args[1], float):
        node, options["scale"] = node.args
    if _calls(node, _aten.div.Tensor):
        node, sums = node.args
        if (limits := _normalization(sums, node)) is None:
            return None
        options |= limits
    if node.target in _SCORES and node.args[1:] in ((), (1,)) and _calls(node.args[0], _aten.gather.default):
        options["weighting"] = _SCORES[node.target]
        node = node.args[0]
    if not _calls(node, _aten.gather.default) or node.args[1:] != (1, chosen):
        return None
    return _Weights(node.args[0], expert_scale, options)


def _normalization(sums: Any, weights: fx.Node) -> dict[str, Any] | None:
    """eps and least of max(sum of weights + eps, least)."""
    options: dict[str, Any] = {"normalized": True}
    if _calls(sums, _aten.clamp.default) and len(sums.args) == 2:
        sums, options["least"] = sums.args
    if _calls(sums, _aten.add.Tensor) and isinstance(sums.args[1], float):
        sums, options["eps"] = sums.args
    is_sum = _calls(sums, _aten.sum.dim_IntList) and sums.args == (weights, [1], True)
    return options if is_sum else None


def _choice(choice: fx.Node, scores: fx.Node) -> _Choice | None:
    options: dict[str, Any] = {}
    if _calls(choice, _aten.flatten.using_ints):
        if (grouped := _groups(choice.args[0])) is None:
            return None
        choice, options = grouped
    if choice is scores:
        return _Choice(None, options)
    added = operands(choice, _aten.add.Tensor)
    return None if added is None or added[0] is not scores else _Choice(added[1], options)


def _groups(filled: Any) -> tuple[fx.Node, dict[str, Any]] | None:
    """What is masked outside the best groups, and how these are found."""
    if not _calls(filled, _aten.masked_fill.Scalar):
        return None
    by_group, others, masked = filled.args
    kept: Any = others.args[0].args[0] if _calls(others, _aten.eq.Scalar) else None
    best = _best(kept.args[2]) if _calls(kept, _aten.scatter.src) else None
    if best is None or not _calls(by_group, _aten.unflatten.int):
        return None
    sums, count = best
    if not _calls(sums, _aten.sum.dim_IntList) or sums.args[1:] != ([2],):
        return None
    largest, taken = _first_of(sums.args[0])
    if largest.args[1:] != (0,) or not _calls(largest.args[0], _aten.sort.default) or largest.args[0].args != (by_group, 2, True):
        return None
    if masked not in (0.0, float("-inf")):
        return None
    options = {"groups": int(by_group.args[2][0]), "kept": count, "best": taken, "zero_outside": masked == 0.0}
    return by_group.args[0], options


def _score(scores: fx.Node) -> tuple[str, fx.Node]:
    """Which function of the logits, and these."""
    source: Any = scores.args[0] if scores.args else None
    if scores.target in _SCORES:
        return _SCORES[scores.target], source
    if scores.target is _aten.sqrt.default and _calls(source, _aten.softplus.default):
        return "sqrt_softplus", source.args[0]
    return "identity", scores


def _calls(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets
