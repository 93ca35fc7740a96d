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

    q [T, QH, D], k [T, KH, D], v [T, KH, V], V up to D, float32 (tokens may lie apart in memory); k_cache and
    v_cache [blocks, KH, block_size, D] float32, float16 or bfloat16, or [blocks, KH, block_size, D + 4]
    int8, block_size a multiple of 16 up to 512; cu_seqlens [S+1], seq_lens [S] (new tokens
    included), block_table [S, B], slot_mapping [T] int32. `sinks` [QH] float32 holds one more score
    per query head, neither scaled nor capped, which takes its share of the softmax and adds no
    value. `q_scale` [T] float32 multiplies the query of each token. Returns [T, QH, V] float32; rows
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


def expanded_attention(
    q: Tensor,
    latents: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    cache: Tensor,
    cu_seqlens: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention over keys and values that are made of latents: as papers write it, and as nothing computes it.

    q [T, QH, N + R], latents [T, L + R], key_up [QH * L, N], value_up [QH * V, L] float32. A key of a head is the product of the first L
    elements of a latent with the head's matrix of key_up, [L, N], and then the latent's last R elements, which all heads share; a value
    is the product with the transpose of the head's matrix of value_up, [V, L]. cache [blocks, 1, block_size, L + R] holds latents, in any
    type of `attention`'s. Returns [T, QH, V] float32. A pass makes `latent_attention` of it (passes/absorb_latent.py): there is no kernel.
    """
    out = torch.ops.engine.expanded_attention(q, latents, key_up, value_up, cache, cu_seqlens, seq_lens, block_table, slot_mapping, scale)
    return cast(Tensor, out)


def latent_attention(
    q: Tensor,
    q_rope: Tensor,
    latents: Tensor,
    cache: Tensor,
    cu_seqlens: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    scale: float,
) -> Tensor:
    """The same absorbed: queries are products with the transposes of the matrices that make keys, and what comes out is of latents yet.

    q [QH, T, L], q_rope [T, QH, R], latents [T, L + R] float32 -> [QH, T, L] float32; the rest as in `expanded_attention`. Rows past
    cu_seqlens[S] are zero. Raises RuntimeError if shapes or dtypes do not fit.
    """
    out = torch.ops.engine.latent_attention(q, q_rope, latents, cache, cu_seqlens, seq_lens, block_table, slot_mapping, scale)
    return cast(Tensor, out)
