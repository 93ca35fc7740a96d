"""One operator for queries, keys and values that are clamped.

    clamp(x, -limit, limit)    ->  engine.clip(x, limit)

Why: one pass over the rows, on all threads.

When not: on targets whose compiler fuses these well itself, and on anything but [T, K]. Numerics do not change.
"""

from typing import Any

import torch
from torch import fx

from .rewrite import is_matrix, replace, rewrite_each


def fuse_clip(graph: fx.Graph) -> int:
    """Rewrite every clamp in `graph`; returns how many."""
    return rewrite_each(graph, torch.ops.aten.clamp.default, _fuse)


def _fuse(graph: fx.Graph, clamp: fx.Node) -> bool:
    arguments: Any = clamp.args
    x, *limits = arguments
    if len(limits) != 2 or not isinstance(limits[1], float) or limits[0] != -limits[1] or not is_matrix(x):
        return False
    replace(graph, clamp, torch.ops.engine.clip.default, (x, limits[1]))
    return True
