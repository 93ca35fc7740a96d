"""The paged attention operators: what comes before attention, then attention over the cache.

Legend: T tokens, S sequences, B blocks per sequence, QH and KH query and key-value heads, D head size.
"""

from typing import Any

from .attention_decode import attention_decode
from .attention_mixed import attention_mixed
from .attention_tiles import Paged
from .launch import Context, Emit, Launch, Tensor
from .rope_kv_write import rope_kv_write


def attention_emitter(*, norm: bool, rope: bool) -> Emit:
    """The emitter of one form of the operator.

    Arguments: q [T, QH, D], k and v [T, KH, D] (may be slices), with norm q_norm and k_norm [D], with
    rope cos and sin [T, D / 2] float32, k_cache and v_cache [blocks, KH, block_size, D],
    query_start [S+1], seq_lens [S], block_table [S, B], slots [T] int32, sinks [QH] float32 or None, scale, window, softcap, with norm eps.
    """

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        q, k, v, *rest = arguments
        norms = (rest.pop(0), rest.pop(0)) if norm else None
        angles = (rest.pop(0), rest.pop(0)) if rope else None
        k_cache, v_cache, query_start, seq_lens, block_table, slots, sinks, scale, window, softcap, *more = rest
        caches = (k_cache, v_cache)
        ready = context.allocate(q.dtype, q.shape) if norm or rope else None
        write = rope_kv_write(q, k, v, norms, angles, ready, caches, slots, more[0] if norm else 0.0)
        paged = Paged(
            q=q if ready is None else ready,
            k_cache=k_cache,
            v_cache=v_cache,
            seq_lens=seq_lens,
            block_table=block_table,
            sinks=sinks,
            scale=scale,
            window=window,
            softcap=softcap,
        )
        return [write, *attention_decode(paged, out, context), *attention_mixed(paged, query_start, out, context)]

    return emit


ATTENTION: dict[str, Emit] = {
    "paged_attention": attention_emitter(norm=False, rope=False),
    "rope_paged_attention": attention_emitter(norm=False, rope=True),
    "norm_paged_attention": attention_emitter(norm=True, rope=False),
    "norm_rope_paged_attention": attention_emitter(norm=True, rope=True),
}
