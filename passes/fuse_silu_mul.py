"""One operator for the gate of a feed-forward layer.

    silu(gate) * up    ->  engine.silu_mul(gate, up)

Why: one pass over both, on all threads, with a vectorised exponent; and the place where
fuse_quantize can take the result without it ever being written.

When not: when silu(gate) is used elsewhere, or the two differ in shape.
"""

import torch
from torch import fx

from .rewrite import only_user, operands, replace, rewrite_each

_aten = torch.ops.aten


def fuse_silu_mul(graph: fx.Graph) -> int:
    """Rewrite every SiLU-mul of two matrices in `graph`; returns how many."""
    return rewrite_each(graph, _aten.silu.default, _fuse)


def _fuse(graph: fx.Graph, silu: fx.Node) -> bool:
    product = only_user(silu)
    factors = operands(product, _aten.mul.Tensor)
    if product is None or factors is None:
        return False
    up = factors[1] if factors[0] is silu else factors[0]
    gate = silu.args[0]
    assert isinstance(gate, fx.Node)
    shape = list(gate.meta["val"].shape)
    if len(shape) != 2 or list(up.meta["val"].shape) != shape:
        return False
    replace(graph, product, torch.ops.engine.silu_mul.default, (gate, up))
    return True
