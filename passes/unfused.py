"""What no rewrite took: operators of PyTorch that compute values for whole rows of the residual stream, or wider ones.

On targets whose segments run on one thread these cost more than they look like; for a model that a
target serves well there are none. Nothing is rewritten here.
"""

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import fx

_MOVES = frozenset({torch.ops.aten.index_select.default})
"""Which pick rows or columns and compute nothing."""


def unfused(graph: fx.Graph, *, columns: int) -> dict[str, int]:
    """How often each operator that is not ours gives [rows, ...] of at least `columns` elements per row, by its name.

    Views are no work. Rows are those whose number is symbolic: tokens, or those that get logits.
    """
    return dict(Counter(str(node.target) for node in graph.nodes if node.op == "call_function" and _is_row_work(node, columns)))


def _is_row_work(node: fx.Node, columns: int) -> bool:
    target: Any = node.target
    value: Any = node.meta["val"]
    if not isinstance(target, torch._ops.OpOverload) or target.namespace == "engine" or target.is_view or target in _MOVES:
        return False
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return False
    sizes: list[Any] = list(value.shape[1:])
    rows: Any = value.shape[0]
    return not isinstance(rows, int) and all(isinstance(size, int) for size in sizes) and prod(sizes) >= columns
