"""Linears and embeddings that multiply their result with a number.

    linear(x, w, bias, None, n, 1.0) * c         ->  linear(x, w, bias, None, n, c)
    embedding(tokens, w, n, 1.0) * c             ->  embedding(tokens, w, n, c)
    linear(quantize(x * c), w, None, None, n, 1.0)
                                                 ->  linear(quantize(x), w, None, None, n, c)

Why: the product is multiplied while it is still in registers. As an operator of its own it reads
and writes a matrix, as wide as the vocabulary where logits are scaled. In front of fuse_residual_add,
so that `x + c * linear(y)` is one operator.

When not: when the product has another reader, a residual or a multiplier already; in front of
linears, when one of those that read x * c has a bias, or anything else reads it. Numerics do not
change behind an operator; in front of one, float32 rounds elsewhere.
"""

from typing import Any

import torch
from torch import fx

from ..kernels.formats import PANEL_KERNELS, QUANTIZERS, ROW_KERNELS
from ..kernels.nvidia.packed_rows import FP8_STATIC
from .linears import is_linear, linear_arguments
from .rewrite import call_like, erase_unused, only_user, replace, rewrite_each

_MUL = torch.ops.aten.mul.Tensor


def fuse_multiplier(graph: fx.Graph) -> int:
    """Rewrite every product with a number behind or in front of a linear or embedding; returns how many."""
    return rewrite_each(graph, _MUL, _fuse)


def _fuse(graph: fx.Graph, product: fx.Node) -> bool:
    x, c = product.args
    if not isinstance(x, fx.Node) or not isinstance(c, float):
        return False
    return _fuse_behind(graph, product, x, c) or _fuse_before(graph, product, x, c)


def _fuse_behind(graph: fx.Graph, product: fx.Node, x: fx.Node, c: float) -> bool:
    takes = _is_embedding(x) or (is_linear(x) and linear_arguments(x).residual is None)
    if not takes or x.args[-1] != 1.0 or only_user(x) is None:
        return False
    replace(graph, product, x.target, (*x.args[:-1], c))
    return True


def _is_embedding(node: fx.Node) -> bool:
    return node.target in {getattr(torch.ops.engine, f"embedding_{kernel}").default for kernel in (*PANEL_KERNELS, *ROW_KERNELS)}


def _fuse_before(graph: fx.Graph, product: fx.Node, x: fx.Node, c: float) -> bool:
    quantizers = [user for user in product.users if user.target in _quantizers()]
    linears = [user for source in (product, *quantizers) for user in source.users if user not in quantizers]
    if not linears or not all(is_linear(user) and _can_multiply(user, {product, *quantizers}) for user in linears):
        return False
    for linear in linears:
        linear.args = (*linear.args[:-1], c)
    for quantizer in quantizers:
        with graph.inserting_before(quantizer):
            quantizer.replace_all_uses_with(call_like(graph, quantizer.target, (x, *quantizer.args[1:])))
    product.replace_all_uses_with(x)
    for node in (*quantizers, product):
        erase_unused(graph, node)
    return True


def _quantizers() -> set[Any]:
    """Without the one whose scale is given, which is that of x * c."""
    names = set(QUANTIZERS.values()) - {f"quantize_{FP8_STATIC}"}
    return {getattr(torch.ops.engine, name).default for name in names}


def _can_multiply(linear: fx.Node, sources: set[fx.Node]) -> bool:
    arguments = linear_arguments(linear)
    return arguments.x in sources and arguments.bias is None and arguments.residual not in sources and arguments.multiplier == 1.0
