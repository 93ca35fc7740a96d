"""Our operator for LayerNorm over the rows of a matrix.

    layer_norm(x, [K], weight, bias, eps)    ->  engine.layer_norm(x, weight, bias, None, eps)

Why: as fuse_rms_norm.

When not: on anything but [T, K].
"""

from typing import Any, NamedTuple

import torch
from torch import fx

from .rewrite import is_matrix, replace, rewrite_each


class LayerNormArguments(NamedTuple):
    """What PyTorch's operator takes, with its defaults."""

    x: fx.Node
    shape: list[int]
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    eps: float = 1e-05


def layer_norm_arguments(norm: fx.Node) -> LayerNormArguments:
    arguments: tuple[Any, ...] = norm.args[:5]
    return LayerNormArguments(*arguments)


def fuse_layer_norm(graph: fx.Graph) -> int:
    """Rewrite every LayerNorm in `graph`; returns how many."""
    return rewrite_each(graph, torch.ops.aten.layer_norm.default, _fuse)


def _fuse(graph: fx.Graph, norm: fx.Node) -> bool:
    x, shape, weight, bias, eps = layer_norm_arguments(norm)
    if not is_matrix(x) or len(shape) != 1:
        return False
    replace(graph, norm, torch.ops.engine.layer_norm.default, (x, weight, bias, None, eps))
    return True
