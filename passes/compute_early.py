"""What reads views, and does not wait for attention, is computed before it.

    attention(q, ...); act(gate) * up; ...    ->    act(gate) * up; attention(q, ...); ...      where gate and up do not come of attention

Why: the graph is cut at attention. Where attention and channel run side by side, both read the same
norm, so their linears are one; the slices for the channel would cross the cut as views of a wider
tensor, which segments do not take, instead of the product that they are multiplied to.

When not: what reads whole tensors stays where it is, since these cross a cut as they are. (The rows of the
residual that are sampled are chosen after the last attention: chosen before, they would make one more
segment of the layers in between.) Numerics do not change.
"""

import torch
from torch import fx

from ..kernels.cut_operators import CUT_OPERATORS


def compute_early(graph: fx.Graph) -> int:
    """Move every call that would read a view across a cut, and can be before it, to right before that cut; returns how many moved."""
    targets = {getattr(torch.ops.engine, operator.name).default for operator in CUT_OPERATORS.values()}
    cuts: list[fx.Node] = []
    piece_of: dict[fx.Node, int] = {}  # between which cuts a node is; 0 before the first, as inputs are
    moved = 0
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in targets:
            cuts.append(node)
            piece_of[node] = len(cuts)
            continue
        sources = node.all_input_nodes
        piece = max((piece_of.get(source, 0) for source in sources), default=0)
        if piece < len(cuts) and any(piece_of.get(source, 0) == piece and _is_view(source) for source in sources):
            cuts[piece].prepend(node)
            moved += 1
            piece_of[node] = piece
        else:
            piece_of[node] = len(cuts)
    return moved


def _is_view(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_contiguous()
