"""One operator for sums of rows that no kernel in front of them takes.

    x + y * c    ->  engine.scaled_add(x, y, c)      a norm's result with a multiplier, say
    x + y        ->  engine.scaled_add(x, y, 1.0)    embeddings of tokens and of positions, say

Why: one pass over the rows, on all threads. Behind the passes that make such a sum part of another operator.

When not: on targets whose compiler fuses these well itself, on anything but [T, K], or when x or y is broadcast.
Numerics do not change.
"""

import torch
from torch import fx

from .rewrite import is_matrix, only_user, operands, replace, rewrite_each, same_shape

_aten = torch.ops.aten


def fuse_scaled_add(graph: fx.Graph) -> int:
    """Rewrite every sum of two matrices in `graph`; returns how many."""
    return rewrite_each(graph, _aten.add.Tensor, _fuse)


def _fuse(graph: fx.Graph, add: fx.Node) -> bool:
    terms = operands(add, _aten.add.Tensor)
    if terms is None or not is_matrix(add) or not same_shape(*terms) or any(term.meta["val"].dtype != torch.float32 for term in terms):
        return False
    for x, product in (terms, terms[::-1]):
        if (scaled := _scaled(product)) is not None:
            replace(graph, add, torch.ops.engine.scaled_add.default, (x, *scaled))
            return True
    replace(graph, add, torch.ops.engine.scaled_add.default, (*terms, 1.0))
    return True


def _scaled(node: fx.Node) -> tuple[fx.Node, float] | None:
    """y and c, if `node` is y * c and has one reader."""
    if node.target is not _aten.mul.Tensor or only_user(node) is None:
        return None
    y, c = node.args
    return (y, c) if isinstance(y, fx.Node) and isinstance(c, float) else None
