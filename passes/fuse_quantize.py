"""Row operators that quantize their result for the linear that reads it.

    quantize(rms_norm(x, weight, eps))    ->  engine.rms_norm_quantize(x, weight, eps)
    quantize(silu_mul(gate, up))          ->  engine.silu_mul_quantize(gate, up)

Why: the float result is never written and read again; a third of the bytes go to memory.

When not: when the float result has another reader. Numerics do not change: the twin computes
the same values and the same rounding.
"""

import torch
from torch import fx

from .rewrite import only_user, replace, rewrite_each

_engine = torch.ops.engine


def fuse_quantize(graph: fx.Graph) -> int:
    """Rewrite every quantization of a row operator's result; returns how many."""
    return rewrite_each(graph, _engine.quantize.default, _fuse)


def _fuse(graph: fx.Graph, quantize: fx.Node) -> bool:
    twins = {
        _engine.rms_norm.default: _engine.rms_norm_quantize.default,
        _engine.silu_mul.default: _engine.silu_mul_quantize.default,
    }
    source = quantize.args[0]
    assert isinstance(source, fx.Node)
    if source.target not in twins or only_user(source) is None:
        return False
    replace(graph, quantize, twins[source.target], source.args)
    return True
