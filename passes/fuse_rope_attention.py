"""QK-norm and rotation go into the attention operator, which writes the keys as well.

    q = weight * (q * rsqrt(mean(q^2) + eps)); k likewise            where the model has QK-norm
    q = cat(q1 * cos - q2 * sin, q2 * cos + q1 * sin); k likewise    where the layer rotates
    paged_attention(q, k, v, ...)
                ->  engine.norm_rope_paged_attention(q, k, v, q_weight, k_weight, cos, sin, ..., eps)
                    engine.rope_paged_attention(q, k, v, cos, sin, ...)
                    engine.norm_paged_attention(q, k, v, q_weight, k_weight, ..., eps)

Why: the operator reads every query and key anyway, where the linears left them; both are not
written to memory and read again, and a segment computes nothing on one thread before it.

When not: when q and k are not treated alike (the same angles, the same eps), or not in the
textbook way. Numerics change only in the order in which a norm's squares are summed.
"""

from typing import Any

import torch
from torch import fx

from .rewrite import operands, replace, rewrite_each

_aten = torch.ops.aten


def fuse_rope_attention(graph: fx.Graph) -> int:
    """Rewrite every attention of `graph` whose queries and keys are rotated or normalized before; returns how many."""
    return rewrite_each(graph, torch.ops.engine.paged_attention.default, _fuse)


def _fuse(graph: fx.Graph, attention: fx.Node) -> bool:
    q, k, *rest = attention.args
    form, tensors, numbers = "", [], []
    q_turn, k_turn = _rotation(q), _rotation(k)
    if q_turn and k_turn and q_turn[1:] == k_turn[1:]:
        q, k, form, tensors = q_turn[0], k_turn[0], "rope_", list(q_turn[1:])
    q_norm, k_norm = _norm(q), _norm(k)
    if q_norm and k_norm and q_norm[2] == k_norm[2]:
        q, k, form, tensors, numbers = q_norm[0], k_norm[0], f"norm_{form}", [q_norm[1], k_norm[1], *tensors], [q_norm[2]]
    if not form:
        return False
    target = getattr(torch.ops.engine, f"{form}paged_attention").default
    replace(graph, attention, target, (q, k, rest[0], *tensors, *rest[1:], *numbers))
    return True


def _rotation(x: Any) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """source, cos and sin, if x is cat((a * cos - b * sin, b * cos + a * sin), -1) of a, b = chunk(source, 2, -1)."""
    if not _calls(x, _aten.cat.default) or x.args[1:] != (-1,) or len(x.args[0]) != 2:
        return None
    first, second = operands(x.args[0][0], _aten.sub.Tensor), operands(x.args[0][1], _aten.add.Tensor)
    if first is None or second is None:
        return None
    products = [operands(product, _aten.mul.Tensor) for product in (*first, *second)]
    match products:
        case [(a, cos), (b, sin), (b2, cos2), (a2, sin2)] if a is a2 and b is b2:
            source, angles = _halves(a, b), (_over_heads(cos), _over_heads(sin))
            same = (_over_heads(cos2), _over_heads(sin2)) == angles
            if source is not None and angles[0] is not None and angles[1] is not None and same:
                return source, angles[0], angles[1]
    return None


def _halves(a: fx.Node, b: fx.Node) -> fx.Node | None:
    """The tensor whose halves along its last axis are a and b."""
    chunk: Any = a.args[0]
    parts = [(part.args[0], part.args[1]) for part in (a, b) if part.op == "call_function" and len(part.args) == 2]
    if parts != [(chunk, 0), (chunk, 1)] or not _calls(chunk, _aten.chunk.default) or chunk.args[1:] != (2, -1):
        return None
    source: fx.Node = chunk.args[0]
    return source


def _over_heads(x: fx.Node) -> fx.Node | None:
    """The [T, D / 2] tensor that x is, with an axis for the heads."""
    return x.args[0] if _calls(x, _aten.unsqueeze.default) and x.args[1] == 1 else None  # type: ignore[return-value]


def _norm(x: Any) -> tuple[fx.Node, fx.Node, float] | None:
    """source, weight and eps, if x is weight * (source * rsqrt(mean(source ** 2, -1) + eps)) with one weight per element of a head."""
    weight, scaled = operands(x, _aten.mul.Tensor) or (None, None)
    source, root = operands(scaled, _aten.mul.Tensor) or (None, None)
    if weight is None or source is None or root is None or len(weight.meta["val"].shape) != 1 or not _calls(root, _aten.rsqrt.default):
        return None
    sum: Any = root.args[0]
    mean: Any = sum.args[0]
    if not _calls(sum, _aten.add.Tensor) or not isinstance(sum.args[1], float) or not _calls(mean, _aten.mean.dim):
        return None
    square: Any = mean.args[0]
    if list(mean.args[1]) != [-1] or mean.args[2:] != (True,) or not _calls(square, _aten.pow.Tensor_Scalar) or square.args != (source, 2):
        return None
    return source, weight, sum.args[1]


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target
