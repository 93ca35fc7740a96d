"""One operator for a textbook RMSNorm over the rows of a matrix.

    weight * (x * rsqrt(mean(pow(x, 2), -1) + eps))    ->  engine.rms_norm(x, weight, None, eps)
    x * rsqrt(mean(pow(x, 2), -1) + eps)               ->  engine.rms_norm(x, None, None, eps)

Why: two passes over a row while it is in the first cache level, on all threads; and the place
where fuse_quantize can take the result without it ever being written.

When not: on anything but [T, K] (the norms over single heads belong to attention), or when an
intermediate value is used elsewhere.
"""

from typing import Any, NamedTuple

import torch
from torch import fx

from .rewrite import is_matrix, only_user, operands, replace, rewrite_each

_aten = torch.ops.aten


def fuse_rms_norm(graph: fx.Graph) -> int:
    """Rewrite every RMSNorm in `graph`; returns how many."""
    return rewrite_each(graph, _aten.rsqrt.default, _fuse)


class RMSNorm(NamedTuple):
    """normalized: x * rsqrt(mean(pow(x, 2), -1) + eps)"""

    x: fx.Node
    eps: float
    normalized: fx.Node


def match_rms_norm(rsqrt: fx.Node) -> RMSNorm | None:
    """The norm of whose last axis `rsqrt` is the reciprocal root."""
    inside = _inside(rsqrt)
    normalized = only_user(rsqrt)
    if inside is None or normalized is None or set(operands(normalized, _aten.mul.Tensor) or ()) != {inside[0], rsqrt}:
        return None
    return RMSNorm(*inside, normalized)


def _fuse(graph: fx.Graph, rsqrt: fx.Node) -> bool:
    matched = match_rms_norm(rsqrt)
    if matched is None or not is_matrix(matched.x):
        return False
    weight = _weight(matched.normalized, matched.x)
    norm = matched.normalized if weight is None else only_user(matched.normalized)
    assert norm is not None
    replace(graph, norm, torch.ops.engine.rms_norm.default, (matched.x, weight, None, matched.eps))
    return True


def _weight(scaled: fx.Node, x: fx.Node) -> fx.Node | None:
    """The vector [K] that the normalized rows are multiplied with and then forgotten, if there is one."""
    factors = operands(only_user(scaled), _aten.mul.Tensor)
    if factors is None:
        return None
    weight = factors[0] if factors[1] is scaled else factors[1]
    return weight if list(weight.meta["val"].shape) == [x.meta["val"].shape[1]] else None


def _inside(rsqrt: fx.Node) -> tuple[fx.Node, float] | None:
    """x and eps of rsqrt(mean(pow(x, 2), -1, keepdim) + eps)."""
    sum: Any = rsqrt.args[0]
    if sum.target is not _aten.add.Tensor or not isinstance(sum.args[1], float):
        return None
    mean: Any = sum.args[0]
    if mean.target is not _aten.mean.dim or list(mean.args[1]) != [-1] or mean.args[2:] != (True,):
        return None
    square: Any = mean.args[0]
    if square.target is not _aten.pow.Tensor_Scalar or square.args[1] != 2:
        return None
    if any(only_user(node) is None for node in (sum, mean, square)):
        return None
    return square.args[0], sum.args[1]
