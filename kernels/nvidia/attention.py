"""The attention operator: what comes before attention, then attention over the cache.

Legend: T tokens, S sequences, B blocks per sequence, QH and KH query and key-value heads, D head size,
R elements of a head that rotate.
"""

from typing import Any

from ..attention.options import AttentionOptions
from ..cut_operators import ATTENTION
from .attention_decode import attention_decode
from .attention_mixed import attention_mixed
from .attention_tiles import Paged
from .context import Context, Emit
from .launch import Launch, Tensor
from .rope_kv_write import Preparation, rope_kv_write


def attention(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """The emitter.

    Arguments: q [T, QH, D], k and v [T, KH, D] (may be slices), k_cache and v_cache [blocks, KH, block_size, D],
    cu_seqlens [S+1], seq_lens [S], block_table [S, B], slot_mapping [T] int32; or None: q_norm and k_norm [D],
    cos and sin [T, R / 2], sinks [QH], q_scale [T] float32; the scalars of AttentionOptions.
    """
    call = ATTENTION.named(arguments)
    options = AttentionOptions.take(call)
    q, caches = call["q"], (call["k_cache"], call["v_cache"])
    preparation = Preparation(
        q_norm=call["q_norm"],
        k_norm=call["k_norm"],
        cos=call["cos"],
        sin=call["sin"],
        q_scale=call["q_scale"],
        eps=options.eps,
        norm_after_rope=options.norm_after_rope,
    )
    ready = context.allocate(q.dtype, q.shape) if preparation.changes_queries else None
    write = rope_kv_write(q, call["k"], call["v"], preparation, ready, caches, call["slot_mapping"])
    paged = Paged(
        q=q if ready is None else ready,
        k_cache=caches[0],
        v_cache=caches[1],
        seq_lens=call["seq_lens"],
        block_table=call["block_table"],
        sinks=call["sinks"],
        options=options,
    )
    return [write, *attention_decode(paged, out, context), *attention_mixed(paged, call["cu_seqlens"], out, context)]


EMITTERS: dict[str, Emit] = {"attention": attention}
