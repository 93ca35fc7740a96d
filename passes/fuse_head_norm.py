"""One operator for a norm over every head of queries, keys or values, where attention takes none.

    weight * (x * rsqrt(mean(pow(x, 2), -1) + eps))      ->  engine.rms_norm_heads(x, weight, eps)
    layer_norm(x, [D], weight, bias, eps)                ->  engine.layer_norm_heads(x, weight, bias, eps)
    layer_norm(x, [D], None, None, eps) * weight + bias  ->  engine.layer_norm_heads(x, weight, bias, eps)

with x [T, H, D], weights and biases [D] or [H, D]. Why: as fuse_rms_norm. Behind fuse_into_attention, whose norms are part of attention.

When not: on targets whose compiler fuses these well itself, or when an intermediate value is used elsewhere.
"""

from typing import Any

import torch
from torch import fx

from .fuse_layer_norm import layer_norm_arguments
from .fuse_rms_norm import match_rms_norm
from .rewrite import only_user, operands, replace, rewrite_each

_aten = torch.ops.aten


def fuse_head_norm(graph: fx.Graph) -> int:
    """Rewrite every norm over heads in `graph`; returns how many."""
    return rewrite_each(graph, _aten.rsqrt.default, _fuse_rms) + rewrite_each(graph, _aten.layer_norm.default, _fuse_layer)


def _fuse_rms(graph: fx.Graph, rsqrt: fx.Node) -> bool:
    matched = match_rms_norm(rsqrt)
    if matched is None or not _is_heads(matched.x):
        return False
    weighted = _vector_beside(matched.normalized, matched.x, _aten.mul.Tensor)
    result, weight = (matched.normalized, None) if weighted is None else weighted
    replace(graph, result, torch.ops.engine.rms_norm_heads.default, (matched.x, weight, matched.eps))
    return True


def _fuse_layer(graph: fx.Graph, norm: fx.Node) -> bool:
    x, shape, weight, bias, eps = layer_norm_arguments(norm)
    if not _is_heads(x) or len(shape) != 1:
        return False
    result = norm
    if weight is None and (weighted := _vector_beside(result, x, _aten.mul.Tensor)) is not None:
        result, weight = weighted
    if bias is None and (biased := _vector_beside(result, x, _aten.add.Tensor)) is not None:
        result, bias = biased
    replace(graph, result, torch.ops.engine.layer_norm_heads.default, (x, weight, bias, eps))
    return True


def _is_heads(x: fx.Node) -> bool:
    return len(x.meta["val"].shape) == 3


def _vector_beside(node: fx.Node, x: fx.Node, target: Any) -> tuple[fx.Node, fx.Node] | None:
    """The only reader of `node`, if it is a call of `target` with a vector for one or for all heads, and that vector."""
    user = only_user(node)
    pair = operands(user, target)
    if user is None or pair is None:
        return None
    vector = pair[0] if pair[1] is node else pair[1]
    _, heads, size = x.meta["val"].shape
    return (user, vector) if list(vector.meta["val"].shape) in ([size], [heads, size]) else None
