"""What a model does to queries and keys before attention goes into the attention operator, which writes the keys as well.

    q = weight * (q * rsqrt(mean(q^2) + eps)); k likewise            where the model has QK-norm
    q = cat(q1 * cos - q2 * sin, q2 * cos + q1 * sin); k likewise    where the layer rotates: all of a head, or
    q = cat(rotated q[..., :width], q[..., width:]); k likewise      its first elements
    q = q * q_scale[:, None, None]                                   where queries are scaled by position
    attention(q, k, ..., None, None, None, None, sinks, None, ...)
                ->  attention(q, k, ..., q_weight, k_weight, cos, sin, sinks, q_scale, ..., eps, norm_after_rope)

The norm may come before the rotation or after it; each of the three may be missing.

Why: the operator reads every query and key anyway, where the linears left them; both are not
written to memory and read again, and a segment computes nothing on one thread before it.

Bidirectional attention likewise.

When not: when q and k are not treated alike (the same angles, the same eps), or not in the
textbook way. Numerics change only in the order in which a norm's squares are summed, and in
q_scale, which is multiplied with the scale of the scores first.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import fx

from ..kernels.cut_operators import ATTENTION, BIDIRECTIONAL_ATTENTION, CutOperator
from .rewrite import operands, replace, rewrite_each

_aten = torch.ops.aten


class _Rotation(NamedTuple):
    source: fx.Node
    cos: fx.Node
    sin: fx.Node


class _Norm(NamedTuple):
    source: fx.Node
    weight: fx.Node
    eps: float


def fuse_into_attention(graph: fx.Graph) -> int:
    """Rewrite every attention of `graph` whose queries and keys are normalized, rotated or scaled before; returns how many."""
    return sum(
        rewrite_each(graph, getattr(torch.ops.engine, operator.name).default, partial(_fuse, operator=operator))
        for operator in (ATTENTION, BIDIRECTIONAL_ATTENTION)
    )


def _fuse(graph: fx.Graph, attention: fx.Node, *, operator: CutOperator) -> bool:
    call = operator.named(attention.args)
    found = _scale(call["q"]) if call["q_scale"] is None else {}
    found |= _rotations({**call, **found})
    if norms := _norms({**call, **found}):
        found |= norms
        if "cos" not in found and (turned := _rotations({**call, **found})):
            found |= turned | {"norm_after_rope": True}
    if not found:
        return False
    replace(graph, attention, attention.target, tuple({**call, **found}.values()))
    return True


def _scale(q: Any) -> dict[str, Any]:
    """The arguments that change if q is source * scale[:, None, None] of a vector with a number for each token."""
    source, factors = operands(q, _aten.mul.Tensor) or (None, None)
    per_token: Any = factors
    for axis in (2, 1):
        if not _calls(per_token, _aten.unsqueeze.default) or per_token.args[1] != axis:
            return {}
        per_token = per_token.args[0]
    return {"q": source, "q_scale": per_token} if len(per_token.meta["val"].shape) == 1 else {}


def _rotations(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments that change if queries and keys are rotated by the same angles."""
    q, k = _rotation(call["q"]), _rotation(call["k"])
    if q is None or k is None or q[1:] != k[1:]:
        return {}
    return {"q": q.source, "k": k.source, "cos": q.cos, "sin": q.sin}


def _norms(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments that change if queries and keys are normalized with the same eps."""
    q, k = _norm(call["q"]), _norm(call["k"])
    if q is None or k is None or q.eps != k.eps:
        return {}
    return {"q": q.source, "k": k.source, "q_norm": q.weight, "k_norm": k.weight, "eps": q.eps}


def _rotation(x: Any) -> _Rotation | None:
    """What x is the rotation of, in whole or in the first elements of every head."""
    if (whole := _whole_rotation(x)) is not None or (parts := _parts(x)) is None:
        return whole
    turned, rest = _whole_rotation(parts[0]), parts[1]
    if turned is None or not _calls(turned.source, _aten.slice.Tensor) or not _calls(rest, _aten.slice.Tensor):
        return None
    source, width = turned.source.args[0], 2 * turned.cos.meta["val"].shape[1]
    if rest.args[0] is not source or not isinstance(source, fx.Node):
        return None
    dims, size = source.meta["val"].dim(), source.meta["val"].shape[-1]
    last = (dims - 1, -1)
    head, tail = turned.source.args[1:], rest.args[1:]
    begins = head[0] in last and head[1:] == (0, width)
    ends = tail[0] in last and tail[1] == width and len(tail) == 3 and isinstance(tail[2], int) and tail[2] >= size
    return turned._replace(source=source) if begins and ends else None


def _whole_rotation(x: Any) -> _Rotation | None:
    """source, cos and sin, if x is cat((a * cos - b * sin, b * cos + a * sin), -1) of a, b = chunk(source, 2, -1)."""
    if (parts := _parts(x)) is None:
        return None
    first, second = operands(parts[0], _aten.sub.Tensor), operands(parts[1], _aten.add.Tensor)
    if first is None or second is None:
        return None
    products = [operands(product, _aten.mul.Tensor) for product in (*first, *second)]
    match products:
        case [(a, cos), (b, sin), (b2, cos2), (a2, sin2)] if a is a2 and b is b2:
            source, angles = _halves(a, b), (_over_heads(cos), _over_heads(sin))
            same = (_over_heads(cos2), _over_heads(sin2)) == angles
            if source is not None and angles[0] is not None and angles[1] is not None and same:
                return _Rotation(source, angles[0], angles[1])
    return None


def _parts(x: Any) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that x is, one behind the other along the last axis."""
    return tuple(x.args[0]) if _calls(x, _aten.cat.default) and x.args[1:] == (-1,) and len(x.args[0]) == 2 else None


def _halves(a: fx.Node, b: fx.Node) -> fx.Node | None:
    """The tensor whose halves along its last axis are a and b."""
    chunk: Any = a.args[0]
    parts = [(part.args[0], part.args[1]) for part in (a, b) if part.op == "call_function" and len(part.args) == 2]
    if parts != [(chunk, 0), (chunk, 1)] or not _calls(chunk, _aten.chunk.default) or chunk.args[1:] != (2, -1):
        return None
    source: fx.Node = chunk.args[0]
    return source


def _over_heads(x: fx.Node) -> fx.Node | None:
    """The [T, R / 2] tensor that x is, with an axis for the heads."""
    return x.args[0] if _calls(x, _aten.unsqueeze.default) and x.args[1] == 1 else None  # type: ignore[return-value]


def _norm(x: Any) -> _Norm | None:
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
    return _Norm(source, weight, sum.args[1])


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target
