"""One operator for the soft cap of the logits, and for tanh, which is a cap of 1.

    cap * tanh(x / cap)    ->  engine.soft_cap(x, cap)
    tanh(x)                ->  engine.soft_cap(x, 1.0)

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
    """Rewrite every tanh in `graph`; returns how many."""
    return rewrite_each(graph, _aten.tanh.default, _fuse)


def _fuse(graph: fx.Graph, tanh: fx.Node) -> bool:
    quotient: Any = tanh.args[0]
    capped = only_user(tanh)
    if quotient.target is _aten.div.Tensor and only_user(quotient) is tanh and capped is not None:
        x, cap = quotient.args
        if isinstance(cap, float) and capped.target is _aten.mul.Tensor and capped.args[1] == cap and is_matrix(x):
            replace(graph, capped, torch.ops.engine.soft_cap.default, (x, cap))
            return True
    if not is_matrix(quotient):
        return False
    replace(graph, tanh, torch.ops.engine.soft_cap.default, (quotient, 1.0))
    return True
