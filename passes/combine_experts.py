"""What is added to the sum of experts, or multiplied with it, becomes part of that sum.

    combine_experts(y, ..., 1.0, w) + shared              ->  combine_experts(y, ..., shared, None, None, 1.0, w)
    combine_experts(y, ..., 1.0, w) + gate * shared       ->  combine_experts(y, ..., shared, gate, None, 1.0, w)    gate [T, 1]
    combine_experts(...) * c                              ->  combine_experts(..., c, w)
    x + combine_experts(...)                              ->  combine_experts(..., residual=x, ...)

Why: the sum is in registers, and would be written and read again for each of them.

When not: when the sum is read elsewhere, or has that already. Numerics do not change, but that the residual is always added last.
"""

from typing import Any

import torch
from torch import fx

from .rewrite import only_user, operands, replace, same_shape

_aten = torch.ops.aten
_engine = torch.ops.engine


def combine_experts(graph: fx.Graph) -> int:
    """Rewrite whatever follows sums of experts; returns how many operators it took."""
    taken = 0
    while any(_take(graph, combine) for combine in graph.find_nodes(op="call_function", target=_engine.combine_experts.default)):
        taken += 1
    return taken


def _take(graph: fx.Graph, combine: fx.Node) -> bool:
    user = only_user(combine)
    arguments = None if user is None else _with_user(combine, user)
    if user is None or arguments is None:
        return False
    replace(graph, user, _engine.combine_experts.default, arguments)
    return True


def _with_user(combine: fx.Node, user: fx.Node) -> tuple[Any, ...] | None:
    """The arguments of a sum that does what `user` does with this one; None if there is none."""
    y, routes, order, shared, gate, residual, multiplier, weighted = combine.args
    if user.target is _aten.mul.Tensor and isinstance(user.args[1], float) and residual is None:
        return None if multiplier != 1.0 else (y, routes, order, shared, gate, residual, user.args[1], weighted)
    added = operands(user, _aten.add.Tensor)
    if added is None or residual is not None or added[0] is added[1]:
        return None
    if added[0] is combine and shared is None and multiplier == 1.0:
        other, by = _gated(added[1])
        return (y, routes, order, other, by, residual, multiplier, weighted) if same_shape(other, combine) else None
    other = added[1] if added[0] is combine else added[0]
    return (y, routes, order, shared, gate, other, multiplier, weighted) if same_shape(other, combine) else None


def _gated(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """What is multiplied with a gate for each row, and that; or the node itself."""
    factors = operands(node, _aten.mul.Tensor)
    if factors is None:
        return node, None
    gate, value = factors
    return (value, gate) if gate.meta["val"].shape[1] == 1 and value.meta["val"].shape[1] != 1 else (node, None)
