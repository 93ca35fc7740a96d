"""Experts compute the tokens that chose them, and no others.

    inner = activation(linear(x, w_gate)) * linear(x, w_up)              each of E * F outputs, for every token
    sum over experts of bmm(inner, w_down) (+ bias) * route_table(routes)
                ->  order = sort_routes(routes)
                    rows = gather_rows(x, routes, order)
                    inner = activation(experts_linear(rows, w_gate, order)) * experts_linear(rows, w_up, order)
                    combine_experts(experts_linear(inner, w_down, order), routes, order, weighted)

    weighed = x * route_table(routes)                                    where weights multiply what experts read
    inner = activation(bmm(weighed, w_gate)) * bmm(weighed, w_up)
    sum over experts of bmm(inner, w_down)
                ->  the same of rows = weigh_rows(x, routes, order), not weighted at the end

Why: of E experts k are chosen, so this is E / k times less work and as many fewer weights to read. Rows are sorted by expert once for
the whole layer, and stay so between the products.

When not: when the weights are not those of `route`, when something between the products is not elementwise, or when an expert's
outputs do not fill whole panels. Numerics change as far as sums of other experts' zeros did: by a sign of zero; and 0 * inf is no
longer NaN.
"""

from typing import Any, NamedTuple

import torch
from torch import fx

from ..kernels.linear.formats import PANEL
from .rewrite import call_like, operands, replace, rewrite_each

_aten, _engine = torch.ops.aten, torch.ops.engine


class _Linear(NamedTuple):
    x: Any
    weight: Any
    bias: Any


def group_experts(graph: fx.Graph) -> int:
    """Rewrite every weighted sum over experts; returns how many."""
    return rewrite_each(graph, _aten.sum.dim_IntList, _group)


def _group(graph: fx.Graph, total: fx.Node) -> bool:
    if total.args[1] != [0]:
        return False
    weighted = operands(total.args[0], _aten.mul.Tensor)
    product, bias = _product(total.args[0] if weighted is None else weighted[0])
    if product is None:
        return False
    inner, down = product.args[0] if weighted is None else _by_expert(product.args[0]), _by_expert(product.args[1])
    linears = None if inner is None else _linears(inner)
    if inner is None or down is None or not linears or len(sources := {linear.x for linear in linears.values()}) != 1:
        return False
    x = sources.pop()
    if weighted is None and (weighted := operands(x, _aten.mul.Tensor)) is not None:
        x, gather = weighted[0], _engine.weigh_rows.default
    else:
        gather = _engine.gather_rows.default
    table = None if weighted is None else _table(weighted[1])
    if table is None:
        return False
    routes, experts = table.args
    outputs = [int(linear.weight.meta["val"].shape[0]) // experts for linear in linears.values()] + [int(product.meta["val"].shape[2])]
    if any(size % PANEL for size in outputs):
        return False
    with graph.inserting_before(total):
        order = call_like(graph, _engine.sort_routes.default, (routes, experts))
        rows = call_like(graph, gather, (x, routes, order))
        grouped = _copied(graph, inner, rows, order, experts, {})
        out = call_like(graph, _engine.experts_linear.default, (grouped, down, bias, order, experts))
    is_weighted = gather is _engine.gather_rows.default
    replace(graph, total, _engine.combine_experts.default, (out, routes, order, None, None, None, 1.0, is_weighted))
    return True


def _table(weights: Any) -> Any:
    """The table of weights [T, E] in what multiplies [E, T, H], or [T, H] to give that: its transpose, unsqueezed."""
    if weights.target is not _aten.unsqueeze.default or weights.args[0].target is not _aten.t.default:
        return None
    table = weights.args[0].args[0]
    return table if table.target is _engine.route_table.default else None


def _product(out: Any) -> tuple[Any, fx.Node | None]:
    """The product with the last matrix, and the bias that is added to it."""
    bias = None
    if (added := operands(out, _aten.add.Tensor)) is not None:
        unflattened: Any
        out, unflattened = added
        if unflattened.target is not _aten.unflatten.int:
            return None, None
        bias = unflattened.args[0]
    return (out if out.target is _aten.bmm.default else None), bias


def _by_expert(node: Any) -> fx.Node | None:
    """What a batch of matrices, one for each expert, is made of: the transpose of something unflattened."""
    if node.target is not _aten.transpose.int or node.args[0].target is not _aten.unflatten.int:
        return None
    source: fx.Node = node.args[0].args[0]
    return source


def _linear(node: fx.Node) -> _Linear | None:
    """The first product of all experts, of one matrix or of a batch, if `node` is one."""
    if node.target is _aten.linear.default:
        return _Linear(*(*node.args, None)[:3])
    if node.target is _aten.bmm.default and (weight := _by_expert(node.args[1])) is not None:
        return _Linear(node.args[0], weight, None)
    return None


def _linears(node: fx.Node) -> dict[fx.Node, _Linear] | None:
    """The products from which elementwise operators make `node`; None if there is anything else in between."""
    if (linear := _linear(node)) is not None:
        return {node: linear}
    if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()):
        return None
    found: dict[fx.Node, _Linear] = {}
    for source in node.all_input_nodes:
        if (linears := _linears(source)) is None:
            return None
        found |= linears
    return found


def _copied(graph: fx.Graph, node: fx.Node, rows: fx.Node, order: fx.Node, experts: int, known: dict[fx.Node, fx.Node]) -> fx.Node:
    """`node` as it is made of grouped linears of `rows`."""
    if node not in known:
        if (linear := _linear(node)) is not None:
            known[node] = call_like(graph, _engine.experts_linear.default, (rows, linear.weight, linear.bias, order, experts))
        else:
            arguments = fx.map_arg(node.args, lambda source: _copied(graph, source, rows, order, experts, known))
            known[node] = call_like(graph, node.target, arguments, dict(node.kwargs))
    return known[node]
