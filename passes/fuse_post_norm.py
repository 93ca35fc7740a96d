"""Norms that add the residual stream to their result.

    x + engine.rms_norm(y, weight, None, eps)            ->  engine.rms_norm(y, weight, x, eps)
    x + engine.layer_norm(y, weight, bias, None, eps)    ->  engine.layer_norm(y, weight, bias, x, eps)

Why: where a norm stands behind attention or the feed-forward layer, the sum cannot be part of the
linear (fuse_residual_add); in the norm it costs one more read, not a pass over two matrices.

When not: when the normalized rows have another reader, or x is broadcast. Numerics do not change.
"""

import torch
from torch import fx

from ..kernels.row_operators import ROW_OPERATORS
from .rewrite import only_user, operands, replace, rewrite_each, same_shape

_ADD = torch.ops.aten.add.Tensor


def fuse_post_norm(graph: fx.Graph) -> int:
    """Rewrite every addition to a norm's result in `graph`; returns how many."""
    return rewrite_each(graph, _ADD, _fuse)


def _fuse(graph: fx.Graph, add: fx.Node) -> bool:
    terms = operands(add, _ADD)
    if terms is None:
        return False
    for norm, residual in (terms[::-1], terms):
        position = _residual_position(norm)
        if position is not None and norm.args[position] is None and only_user(norm) is add and same_shape(norm, residual):
            arguments = list(norm.args)
            arguments[position] = residual
            replace(graph, add, norm.target, tuple(arguments))
            return True
    return False


def _residual_position(node: fx.Node) -> int | None:
    """Where a norm has its residual."""
    for name in ("rms_norm", "layer_norm"):
        if node.target is getattr(torch.ops.engine, name).default:
            return ROW_OPERATORS[name].position("residual")
    return None
