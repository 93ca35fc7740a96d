"""One operator for rows that are multiplied with one learned number.

    x * factor    ->  engine.scale(x, factor)      factor [1]

Why: one pass over the rows, on all threads.

When not: on targets whose compiler fuses these well itself, and on anything but [T, K]. Numerics do not change.
"""

import torch
from torch import fx

from .rewrite import is_matrix, operands, replace, rewrite_each

_MUL = torch.ops.aten.mul.Tensor


def fuse_scale(graph: fx.Graph) -> int:
    """Rewrite every product of a matrix in `graph` with a number that is a tensor; returns how many."""
    return rewrite_each(graph, _MUL, _fuse)


def _fuse(graph: fx.Graph, product: fx.Node) -> bool:
    terms = operands(product, _MUL)
    if terms is None:
        return False
    for x, factor in (terms, terms[::-1]):
        if is_matrix(x) and list(factor.meta["val"].shape) == [1]:
            replace(graph, product, torch.ops.engine.scale.default, (x, factor))
            return True
    return False
