"""Keys and values of latents are not made: queries are brought to the latents, and sums of latents to the values.

    expanded_attention(cat(plain, turned), latents, key_up, value_up, cache, ..., scale)              of QH heads
                ->  rows = plain of each head, one head after another                                 [QH * T, N]
                    q = experts_linear(rows, key_up, None, equal_order(rows, QH), QH)                 [QH * T, L]
                    sums = latent_attention(q, turned, latents, cache, ..., scale)                    [QH, T, L]
                    experts_linear(sums, value_up, None, equal_order(sums, QH), QH)                   [QH * T, V]

Why: q . (W c) = (W^T q) . c, and a sum of W c is W times the sum of c. So what is kept is one latent for all heads, 576 numbers of
DeepSeek-V3 in place of 40,960, and none of it is ever made larger. Each head is a matrix of its own for as many rows: the products are
those of experts of which every token chose all.

When not: when the query is not made of a part without and a part with positions, or when a head's outputs do not fill whole panels.
Numerics change by the order of products: that of three matrices.
"""

from typing import Any

import torch
from torch import fx

from ..kernels.linear.formats import PANEL
from .rewrite import call_like, erase_unused, rewrite_each

_aten, _engine = torch.ops.aten, torch.ops.engine


def absorb_latent(graph: fx.Graph) -> int:
    """Rewrite every attention over keys and values that are made of latents; returns how many."""
    return rewrite_each(graph, _engine.expanded_attention.default, _absorb)


def _absorb(graph: fx.Graph, node: fx.Node) -> bool:
    arguments: Any = node.args
    q, latents, key_up, value_up, *where, scale = arguments
    if q.target is not _aten.cat.default or len(q.args[0]) != 2:
        return False
    plain, turned = q.args[0]
    heads = int(q.meta["val"].shape[1])
    if plain.meta["val"].shape[2] != key_up.meta["val"].shape[1] or any(
        int(weight.meta["val"].shape[0]) // heads % PANEL for weight in (key_up, value_up)
    ):
        return False
    with graph.inserting_before(node):
        queries = _each_head(graph, _exchanged(graph, plain), key_up, heads)
        sums = call_like(graph, _engine.latent_attention.default, (queries, turned, latents, *where, scale))
        values = _each_head(graph, sums, value_up, heads)
        exchanged = _exchanged(graph, values)
    node.replace_all_uses_with(exchanged)
    erase_unused(graph, node)
    return True


def _exchanged(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """x with its first two axes exchanged, in memory too: whether a view is that already depends on the number of tokens."""
    return call_like(
        graph, _aten.clone.default, (call_like(graph, _aten.transpose.int, (x, 0, 1)),), {"memory_format": torch.contiguous_format}
    )


def _each_head(graph: fx.Graph, x: fx.Node, weight: fx.Node, heads: int) -> fx.Node:
    """x [QH, T, K] times each head's matrix of weight [QH * N, K] -> [QH, T, N]."""
    rows = call_like(graph, _aten.flatten.using_ints, (x, 0, 1))
    order = call_like(graph, _engine.equal_order.default, (rows, heads))
    product = call_like(graph, _engine.experts_linear.default, (rows, weight, None, order, heads))
    return call_like(graph, _aten.unflatten.int, (product, 0, [heads, -1]))
