"""Experts compute the tokens that chose them, and no others.

    inner = activation(linear(x, w_gate)) * linear(x, w_up)              each of E * F outputs, for every token
    sum over experts of bmm(inner, w_down) (+ bias) * route_table(routes)
                ->  order = sort_routes(routes)
                    rows = gather_rows(x, routes, order)
                    inner = activation(experts_linear(rows, w_gate, order)) * experts_linear(rows, w_up, order)
                    combine_experts(experts_linear(inner, w_down, order), routes, order)

Why: of E experts k are chosen, so this is E / k times less work and as many fewer weights to read. Rows are sorted by expert once for
the whole layer, and stay so between the products.

When not: when the weights are not those of `route`, when something between the products is not elementwise, or when an expert's
outputs do not fill whole panels. Numerics change as far as sums of other experts' zeros did: by a sign of zero; and 0 * inf is no
longer NaN.
"""

from typing import Any

import torch
from torch import fx

from ..kernels.linear.formats import PANEL
from .rewrite import call_like, operands, replace, rewrite_each

_aten, _engine = torch.ops.aten, torch.ops.engine


def group_experts(graph: fx.Graph) -> int:
    """Rewrite every weighted sum over experts; returns how many."""
    return rewrite_each(graph, _aten.sum.dim_IntList, _group)


def _group(graph: fx.Graph, total: fx.Node) -> bool:
    weighted = operands(total.args[0], _aten.mul.Tensor)
    if total.args[1] != [0] or weighted is None:
        return False
    out, weights = weighted
    table, (product, bias) = _table(weights), _product(out)
    if table is None or product is None:
        return False
    routes, experts = table.args
    inner, down = _by_expert(product.args[0]), _by_expert(product.args[1])
    if inner is None or down is None:
        return False
    outputs = int(inner.meta["val"].shape[1]) // experts, int(product.meta["val"].shape[2])
    leaves = _linears(inner)
    if any(size % PANEL for size in outputs) or leaves is None or len({leaf.args[0] for leaf in leaves}) != 1:
        return False
    with graph.inserting_before(total):
        order = call_like(graph, _engine.sort_routes.default, (routes, experts))
        rows = call_like(graph, _engine.gather_rows.default, (leaves[0].args[0], routes, order))
        grouped = _copied(graph, inner, rows, order, experts, {})
        out = call_like(graph, _engine.experts_linear.default, (grouped, down, bias, order, experts))
    replace(graph, total, _engine.combine_experts.default, (out, routes, order, None, None, None, 1.0))
    return True


def _table(weights: Any) -> Any:
    """The table of weights [T, E] in what multiplies [E, T, H]: its transpose, unsqueezed."""
    if weights.target is not _aten.unsqueeze.default:
        return None
    table = weights.args[0].args[0]
    return table if table.target is _engine.route_table.default else None


def _product(out: Any) -> tuple[fx.Node | None, fx.Node | None]:
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


def _linears(node: fx.Node) -> list[fx.Node] | None:
    """The linears from which elementwise operators make `node`; None if there is anything else in between."""
    if node.target is _aten.linear.default:
        return [node]
    if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()):
        return None
    found: list[fx.Node] = []
    for source in node.all_input_nodes:
        if (linears := _linears(source)) is None:
            return None
        found += [linear for linear in linears if linear not in found]
    return found


def _copied(graph: fx.Graph, node: fx.Node, rows: fx.Node, order: fx.Node, experts: int, known: dict[fx.Node, fx.Node]) -> fx.Node:
    """`node` as it is made of grouped linears of `rows`."""
    if node not in known:
        if node.target is _aten.linear.default:
            _, weight, bias = (*node.args, None)[:3]
            known[node] = call_like(graph, _engine.experts_linear.default, (rows, weight, bias, order, experts))
        else:
            arguments = fx.map_arg(node.args, lambda source: _copied(graph, source, rows, order, experts, known))
            known[node] = call_like(graph, node.target, arguments, dict(node.kwargs))
    return known[node]
