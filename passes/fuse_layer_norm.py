"""Our operator for LayerNorm over the rows of a matrix.

    layer_norm(x, [K], weight, bias, eps)    ->  engine.layer_norm(x, weight, bias, None, eps)

Why: as fuse_rms_norm.

When not: on anything but [T, K].
"""

from typing import Any

import torch
from torch import fx

from .rewrite import is_matrix, replace, rewrite_each

_DEFAULTS = (None, None, 1e-05)
"""Of weight, bias and eps."""


def fuse_layer_norm(graph: fx.Graph) -> int:
    """Rewrite every LayerNorm in `graph`; returns how many."""
    return rewrite_each(graph, torch.ops.aten.layer_norm.default, _fuse)


def _fuse(graph: fx.Graph, norm: fx.Node) -> bool:
    arguments: list[Any] = [*norm.args]
    x, shape, *given = arguments
    if not is_matrix(x) or len(shape) != 1:
        return False
    weight, bias, eps = (*given, *_DEFAULTS[len(given) :])[:3]
    replace(graph, norm, torch.ops.engine.layer_norm.default, (x, weight, bias, None, eps))
    return True
