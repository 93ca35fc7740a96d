"""One operator where every head of a token is multiplied with a number of its own: a gate by head.

    x * factors[:, :, None]    ->  engine.scale_heads(x, factors)       x [T, H, D], factors [T, H]

Why: one pass over the rows, on all threads.

When not: on targets whose compiler fuses these well itself, or when there is not one number for each head, those of a token side by
side. Numerics do not change.
"""

from typing import Any

import torch
from torch import fx

from .rewrite import operands, replace, rewrite_each

_aten = torch.ops.aten


def fuse_head_scale(graph: fx.Graph) -> int:
    """Rewrite every product of heads with their numbers in `graph`; returns how many."""
    return rewrite_each(graph, _aten.mul.Tensor, _fuse)


def _fuse(graph: fx.Graph, product: fx.Node) -> bool:
    left, right = operands(product, _aten.mul.Tensor) or (None, None)
    for x, expanded in ((left, right), (right, left)):
        if x is not None and expanded is not None and (factors := _of_heads(expanded, x)) is not None:
            replace(graph, product, torch.ops.engine.scale_heads.default, (x, factors))
            return True
    return False


def _of_heads(expanded: fx.Node, x: fx.Node) -> fx.Node | None:
    """The numbers [T, H] that `expanded` is, with an axis for the elements of x [T, H, D]."""
    if expanded.target is not _aten.unsqueeze.default or expanded.args[1] != 2 or x.meta["val"].dim() != 3:
        return None
    factors: Any = expanded.args[0]
    value = factors.meta["val"]
    return factors if list(value.shape) == list(x.meta["val"].shape[:2]) and value.stride(1) == 1 else None
