"""The paged attention operator, as models call it while they are traced."""

from typing import cast

import torch
from torch import Tensor


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    slots: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Causal attention of a step's new tokens over their sequences, whose keys and values it first writes.

    q [T, QH, D], k and v [T, KH, D] float32 (tokens may lie apart in memory); k_cache and
    v_cache [blocks, KH, block_size, D] float32 or bfloat16, or [blocks, KH, block_size, D + 4]
    int8, block_size a multiple of 16 up to 512; query_start [S+1], seq_lens [S] (new tokens
    included), block_table [S, B], slots [T] int32. Scores are multiplied by `scale`; then, with a
    soft cap C > 0, a score s becomes C * tanh(s / C). A query at position p sees 0..p, or with a
    window W > 0 only p-W+1..p. `sinks` [QH] float32 holds one more score per query head, neither
    scaled nor capped, which takes its share of the softmax and adds no value. Returns [T, QH, D]
    float32; rows past query_start[S] are zero.

    Mutates the caches at `slots` (a negative slot writes nothing), and reads there what it wrote:
    keys and values rounded to the cache's type. No sequence may read a block that another one
    writes in the same call. What is inside a block is the operator's own (see reference.py).
    Nothing at or past seq_lens changes a result. Raises RuntimeError if shapes or dtypes do not fit.
    """
    out = torch.ops.engine.paged_attention(
        q, k, v, k_cache, v_cache, query_start, seq_lens, block_table, slots, sinks, scale, window, softcap
    )
    return cast(Tensor, out)
