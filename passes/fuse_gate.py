"""One operator for an activation function that gates another matrix.

    engine.silu(gate) * up       ->  engine.silu_mul(gate, up)       in gated feed-forward layers, so for every function
    engine.sigmoid(gate) * out   ->  engine.sigmoid_mul(gate, out)   at the gate of attention's output

Why: one pass over both; and the place where fuse_quantize can take the result without it ever
being written.

When not: when the function's result is used elsewhere, or the two differ in shape. Numerics do not change.
"""

from functools import partial

import torch
from torch import fx

from ..kernels.row_operators import FUNCTIONS
from .rewrite import only_user, operands, replace, rewrite_each, same_shape

_MUL = torch.ops.aten.mul.Tensor


def fuse_gate(graph: fx.Graph) -> int:
    """Rewrite every product with an activation function's result in `graph`; returns how many."""
    return sum(rewrite_each(graph, getattr(torch.ops.engine, name).default, partial(_fuse, name=name)) for name in FUNCTIONS)


def _fuse(graph: fx.Graph, function: fx.Node, *, name: str) -> bool:
    product = only_user(function)
    factors = operands(product, _MUL)
    if product is None or factors is None:
        return False
    up = factors[1] if factors[0] is function else factors[0]
    if not same_shape(function, up):
        return False
    replace(graph, product, getattr(torch.ops.engine, f"{name}_mul").default, (function.args[0], up))
    return True
