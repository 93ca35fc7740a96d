"""One operator for a gated activation whose operands are clamped, as in gpt-oss.

    engine.quick_gelu_mul(clamp(gate, max=c), clamp(up, -c, c) + p)    ->  engine.quick_gelu_mul_clamped(gate, up, c, p)
    engine.silu_mul(clamp(gate, max=c), clamp(up, -c, c))              ->  engine.silu_mul_clamped(gate, up, c, 0.0)

Why: one pass over both matrices on all threads, where there were four on one.

When not: when the limits differ, or anything else reads what is clamped. Numerics do not change.
"""

from functools import partial
from typing import Any

import torch
from torch import fx

from ..kernels.row_operators import CLAMPED
from .rewrite import is_matrix, only_user, replace, rewrite_each

_aten = torch.ops.aten


def fuse_clamped_gate(graph: fx.Graph) -> int:
    """Rewrite every gated activation of clamped operands in `graph`; returns how many."""
    return sum(rewrite_each(graph, getattr(torch.ops.engine, f"{name}_mul").default, partial(_fuse, name=name)) for name in CLAMPED)


def _fuse(graph: fx.Graph, product: fx.Node, *, name: str) -> bool:
    arguments: Any = product.args
    gate, up = arguments
    plus = 0.0
    if up.target is _aten.add.Tensor and isinstance(up.args[1], float | int) and only_user(up) is product:
        up, plus = up.args
    gate_limits, up_limits = _clamped(gate), _clamped(up)
    if gate_limits is None or up_limits is None:
        return False
    (gate, least, most), (up, up_least, up_most) = gate_limits, up_limits
    if least is not None or most is None or up_most != most or up_least != -most or not is_matrix(gate):
        return False
    replace(graph, product, getattr(torch.ops.engine, f"{name}_mul_clamped").default, (gate, up, float(most), float(plus)))
    return True


def _clamped(node: Any) -> tuple[fx.Node, Any, Any] | None:
    """What is clamped, and to at least and at most what."""
    if not isinstance(node, fx.Node) or node.target is not _aten.clamp.default or only_user(node) is None:
        return None
    arguments: Any = (*node.args, None, None)
    x, least, most = arguments[:3]
    return x, node.kwargs.get("min", least), node.kwargs.get("max", most)
