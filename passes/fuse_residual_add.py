"""Linears that add the residual stream to their result.

    x + linear(y, w, bias, None, n, c)    ->  linear(y, w, bias, x, n, c)

Why: the product is added while it is still in registers. As an operator of its own the addition
reads two matrices and writes a third, after every attention and every feed-forward layer.

When not: when the product has another reader, has a residual already, or x is broadcast.
"""

import torch
from torch import fx

from .linears import is_linear, linear_arguments
from .rewrite import only_user, operands, replace, rewrite_each, same_shape

_ADD = torch.ops.aten.add.Tensor


def fuse_residual_add(graph: fx.Graph) -> int:
    """Rewrite every addition to a linear's result in `graph`; returns how many."""
    return rewrite_each(graph, _ADD, _fuse)


def _fuse(graph: fx.Graph, add: fx.Node) -> bool:
    terms = operands(add, _ADD)
    if terms is None:
        return False
    for product, residual in (terms[::-1], terms):
        if _can_take(product, residual):
            replace(graph, add, product.target, tuple(linear_arguments(product)._replace(residual=residual)))
            return True
    return False


def _can_take(product: fx.Node, residual: fx.Node) -> bool:
    is_free = is_linear(product) and linear_arguments(product).residual is None
    return is_free and only_user(product) is not None and same_shape(product, residual)
