"""What does not wait for attention is computed before it.

    attention(q, ...); act(gate) * up; ...    ->    act(gate) * up; attention(q, ...); ...      where gate and up do not come of attention

Why: the graph is cut at attention. Where attention and channel run side by side, both read the same
norm, so their linears are one; the slices for the channel would cross the cut as views of a wider
tensor, which segments do not take, instead of the product that they are multiplied to.

When not: never; in a layer whose channel reads what attention gave, everything stays where it is.
Numerics do not change.
"""

from typing import Any

import torch
from torch import fx

from ..kernels.cut_operators import CUT_OPERATORS


def compute_early(graph: fx.Graph) -> int:
    """Move every call of `graph` that can be before an earlier cut to right before that cut; returns how many moved."""
    targets = {getattr(torch.ops.engine, operator.name).default for operator in CUT_OPERATORS.values()}
    cuts: list[fx.Node] = []
    earliest: dict[Any, int] = {}
    moved = 0
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in targets:
            earliest[node] = len(cuts) + 1
            cuts.append(node)
            continue
        piece = max((earliest.get(source, 0) for source in node.all_input_nodes), default=0)
        earliest[node] = piece
        if piece < len(cuts):
            cuts[piece].prepend(node)
            moved += 1
    return moved
