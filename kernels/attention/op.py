"""The attention operators, as models call them while they are traced."""

from typing import cast

import torch
from torch import Tensor

from .options import AttentionOptions


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    options: AttentionOptions,
    *,
    sinks: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """Causal attention of a step's new tokens over their sequences, whose keys and values it first writes.

    q [T, QH, D], k and v [T, KH, D] float32 (tokens may lie apart in memory); k_cache and
    v_cache [blocks, KH, block_size, D] float32, float16 or bfloat16, or [blocks, KH, block_size, D + 4]
    int8, block_size a multiple of 16 up to 512; cu_seqlens [S+1], seq_lens [S] (new tokens
    included), block_table [S, B], slot_mapping [T] int32. `sinks` [QH] float32 holds one more score
    per query head, neither scaled nor capped, which takes its share of the softmax and adds no
    value. `q_scale` [T] float32 multiplies the query of each token. Returns [T, QH, D] float32; rows
    past cu_seqlens[S] are zero.

    The operator itself also takes q_norm and k_norm [D] and cos and sin [T, R / 2] float32: queries
    and keys as they come from the linears are normalized per head and their first R elements
    rotated (see reference.prepared). Models do that themselves, and a pass moves it inside.

    Mutates the caches at `slot_mapping` (a negative slot writes nothing), and reads there what it wrote:
    keys and values rounded to the cache's type. No sequence may read a block that another one
    writes in the same call. What is inside a block is the operator's own (see reference.py).
    Nothing at or past seq_lens changes a result. Raises RuntimeError if shapes or dtypes do not fit.
    """
    out = torch.ops.engine.attention(
        q,
        k,
        v,
        k_cache,
        v_cache,
        cu_seqlens,
        seq_lens,
        block_table,
        slot_mapping,
        None,
        None,
        None,
        None,
        sinks,
        q_scale,
        *options.scalars(),
    )
    return cast(Tensor, out)


def bidirectional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    options: AttentionOptions,
    *,
    sinks: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """Attention of whole sequences to all of their tokens, later ones included; nothing is kept.

    As `attention`, but for caches and what tells where in them: a sequence's keys and values are those
    given. A window reaches as far ahead as back; there are no chunks.
    """
    out = torch.ops.engine.bidirectional_attention(q, k, v, cu_seqlens, None, None, None, None, sinks, q_scale, *options.scalars())
    return cast(Tensor, out)
