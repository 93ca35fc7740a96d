"""One operator for the soft cap of the logits.

    cap * tanh(x / cap)    ->  engine.soft_cap(x, cap)

Why: one pass over rows as wide as the vocabulary, on all threads.

When not: on anything but [T, K] (the caps of scores are attention's), or when an intermediate
value is used elsewhere.
"""

from typing import Any

import torch
from torch import fx

from .rewrite import is_matrix, only_user, replace, rewrite_each

_aten = torch.ops.aten


def fuse_soft_cap(graph: fx.Graph) -> int:
    """Rewrite every soft cap in `graph`; returns how many."""
    return rewrite_each(graph, _aten.tanh.default, _fuse)


def _fuse(graph: fx.Graph, tanh: fx.Node) -> bool:
    quotient: Any = tanh.args[0]
    capped = only_user(tanh)
    if quotient.target is not _aten.div.Tensor or only_user(quotient) is not tanh or capped is None:
        return False
    x, cap = quotient.args
    if not isinstance(cap, float) or capped.target is not _aten.mul.Tensor or capped.args[1] != cap or not is_matrix(x):
        return False
    replace(graph, capped, torch.ops.engine.soft_cap.default, (x, cap))
    return True
