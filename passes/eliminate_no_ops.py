"""Removes operators that return their input.

    y = slice(x, dim, 0, end)     x has at most `end` entries      ->  x
    y = to(x, dtype)              x has that dtype                 ->  x
    y = view(x, shape)            x has that shape                 ->  x
    y = detach(x), alias(x)                                        ->  x

Tracing leaves them behind (`x[:, None]` alone makes a full slice). They cost nothing at run
time once compiled, but two pieces that differ only in them would be two segments.
"""

from typing import Any

import torch
from torch import fx

_ALIASES = frozenset({torch.ops.aten.alias.default, torch.ops.aten.detach.default})
_CASTS = frozenset({torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default})
_RESHAPES = frozenset({torch.ops.aten.view.default, torch.ops.aten.reshape.default})
_END = 2**63 - 1


def eliminate_no_ops(graph: fx.Graph) -> int:
    """Remove every no-op in `graph`; returns how many."""
    removed = 0
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_no_op(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            removed += 1
    return removed


def _is_no_op(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return False
    if node.target in _ALIASES:
        return True
    if node.target is torch.ops.aten.slice.Tensor:
        given: list[Any] = [*node.args[2:]]
        defaults: list[Any] = [0, None, 1]
        start, end, step = given + defaults[len(given) :]
        return bool(start in (0, None) and end in (_END, None) and step == 1)
    before, after = source.meta["val"], node.meta["val"]
    if node.target in _CASTS:
        return bool(before.dtype == after.dtype)
    return node.target in _RESHAPES and list(before.shape) == list(after.shape)
