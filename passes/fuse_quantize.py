"""Row operators that quantize or round their result for the linear that reads it.

    quantize(rms_norm(x, weight, None, eps))    ->  engine.rms_norm_quantize(x, weight, None, eps)
    quantize(silu_mul(gate, up))                ->  engine.silu_mul_quantize(gate, up)
    round_bf16(rms_norm(...))                   ->  engine.rms_norm_round_bf16(...), and so on
    quantize_fp8_channel(rms_norm(...))         ->  engine.rms_norm_quantize_fp8_channel(...), and so on
    quantize_fp8_tensor(..., scale)             ->  engine.rms_norm_quantize_fp8_tensor(..., scale)

Why: the float result is never written and read again; a third of the bytes go to memory, or half.

When not: when the float result has another reader. Numerics do not change: the twin computes
the same values and the same rounding.
"""

from functools import partial

import torch
from torch import fx

from ..kernels.formats import QUANTIZERS
from ..kernels.row_operators import TWINS, twin
from .rewrite import only_user, replace, rewrite_each

_engine = torch.ops.engine


def fuse_quantize(graph: fx.Graph) -> int:
    """Rewrite every quantization of a row operator's result; returns how many."""
    return sum(rewrite_each(graph, getattr(_engine, name).default, partial(_fuse, name=name)) for name in sorted(set(QUANTIZERS.values())))


def _fuse(graph: fx.Graph, quantize: fx.Node, *, name: str) -> bool:
    twins = {getattr(_engine, row.name).default: getattr(_engine, twin(row.name, name)).default for row in TWINS}
    source = quantize.args[0]
    assert isinstance(source, fx.Node)
    if source.target not in twins or only_user(source) is None:
        return False
    replace(graph, quantize, twins[source.target], (*source.args, *quantize.args[1:]))
    return True
