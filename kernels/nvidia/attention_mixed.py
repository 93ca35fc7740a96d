"""Attention over the paged cache where some sequence has more than one new token.

Bound by the tensor cores for long prompts: 4 D operations per query, head and key. A program takes
BLOCK_Q new tokens of one sequence with all query heads of one key-value head, 128 or 64 rows in all, and
walks the keys from the first that any row sees to the last. Which sequence and which of its tokens
a program has is found by bisection: sequence s begins at tile cu_seqlens[s] // BLOCK_Q + s, which
leaves room for every sequence's last, incomplete tile.
"""

from functools import partial

import triton
import triton.language as tl

from .attention_tiles import Paged, cache_rows, first_seen, scores_of, softmax_step, with_sinks
from .choices import SIZE, Candidate, Problem, Range
from .context import Context, launches_of
from .launch import QUERY_LENGTH, Condition, Launch, Tensor, cdiv

_CUTS = ((128, 8, 5), (128, 8, 3), (64, 4, 5), (64, 4, 3))
"""Rows, warps and stages; the first is the policy's. The block table is read two stages ahead of keys and values, of which with 5 two
tiles are then on their way."""
_WIDE_CUTS = ((64, 8, 3),)
"""Of heads beyond _WIDE, whose tiles would not fit into shared memory otherwise."""
_WIDE = 256


@triton.jit
def sequence_of_tile(cu_seqlens, sequences, tile, BLOCK_Q: tl.constexpr):
    """The last sequence whose tiles begin at `tile` or before it."""
    low = 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def tokens_of_tile(cu_seqlens, sequences, tile, BLOCK_Q: tl.constexpr):
    """The sequence of a tile, the first of its new tokens that the tile has, and where they end: before that, if it has none."""
    sequence = sequence_of_tile(cu_seqlens, sequences, tile, BLOCK_Q)
    begin = tl.load(cu_seqlens + sequence)
    return sequence, begin + (tile - begin // BLOCK_Q - sequence) * BLOCK_Q, tl.load(cu_seqlens + sequence + 1)


@triton.jit
def take_in_keys(
    m_i, l_i, acc, queries, position, first, last, k_cache, v_cache, table, length, k_block, k_head, v_block, v_head,
    MASKED: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Walk the keys first..last - 1. Without MASKED every row of `queries`, at `position` in its sequence, sees all of them."""
    d = tl.arange(0, DIM_PADDED)
    seen_from = 0
    if WINDOW + CHUNK > 0:
        seen_from = first_seen(tl.min(position, 0), WINDOW, CHUNK)
    for start in range(first, last, TILE):
        t = start + tl.arange(0, TILE)
        k_at = cache_rows(table, t, seen_from, length, k_block, k_head, BLOCK_SIZE, HEAD_DIM)
        v_at = cache_rows(table, t, seen_from, length, v_block, v_head, BLOCK_SIZE, HEAD_DIM)
        if HEAD_DIM == DIM_PADDED:
            keys = tl.load(k_cache + k_at[None, :] + d[:, None])
            values = tl.load(v_cache + v_at[:, None] + d[None, :])
        else:
            keys = tl.load(k_cache + k_at[None, :] + d[:, None], mask=(d < HEAD_DIM)[:, None], other=0.0)
            values = tl.load(v_cache + v_at[:, None] + d[None, :], mask=(d < HEAD_DIM)[None, :], other=0.0)
        scores = scores_of(tl.dot(queries, keys), SCALE, SOFTCAP)
        if MASKED:
            seen = t[None, :] <= position[:, None]
            if WINDOW + CHUNK > 0:
                seen &= t[None, :] >= first_seen(position, WINDOW, CHUNK)[:, None]
            scores = tl.where(seen, scores, float("-inf"))
        m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc, values)
    return m_i, l_i, acc


@triton.jit
def attention_mixed_kernel(
    q, k_cache, v_cache, cu_seqlens, seq_lens, block_table, sinks, out,
    q_token, q_head, k_block, k_cache_head, v_block, v_cache_head, table_stride, sequences, kv_heads,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, BLOCK_Q: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Up to BLOCK_Q new tokens of one sequence and one key-value head; row r is token r // GROUP, head r % GROUP of its group."""
    kv_head = tl.program_id(1)
    sequence, first_token, end = tokens_of_tile(cu_seqlens, sequences, tl.program_id(0), BLOCK_Q)
    if first_token < end:
        length = tl.load(seq_lens + sequence)
        row = tl.arange(0, ROWS)
        token = first_token + row // GROUP
        d = tl.arange(0, DIM_PADDED)
        head = kv_head * GROUP + row % GROUP
        inside = ((row < BLOCK_Q * GROUP) & (token < end))[:, None] & (d < HEAD_DIM)[None, :]
        at = token.to(tl.int64)[:, None] * q_token + head[:, None] * q_head + d[None, :]
        queries = tl.load(q + at, mask=inside, other=0.0).to(k_cache.dtype.element_ty)
        to_position = length - end
        position = token + to_position
        m_i = tl.full((ROWS,), float("-inf"), tl.float32)
        l_i = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, DIM_PADDED), tl.float32)
        table = block_table + sequence.to(tl.int64) * table_stride
        last = tl.minimum(first_token + BLOCK_Q, end) + to_position
        if WINDOW + CHUNK > 0:
            masked_from = first_seen(first_token + to_position, WINDOW, CHUNK) // TILE * TILE
        else:
            # Before the first row's own position nothing is hidden from any row.
            masked_from = (first_token + to_position + 1) // TILE * TILE
            m_i, l_i, acc = take_in_keys(
                m_i, l_i, acc, queries, position, 0, masked_from, k_cache, v_cache, table, length,
                k_block, kv_head * k_cache_head, v_block, kv_head * v_cache_head,
                False, SCALE, SOFTCAP, WINDOW, CHUNK, HEAD_DIM, DIM_PADDED, BLOCK_SIZE, TILE,
            )  # fmt: skip
        m_i, l_i, acc = take_in_keys(
            m_i, l_i, acc, queries, position, masked_from, last, k_cache, v_cache, table, length,
            k_block, kv_head * k_cache_head, v_block, kv_head * v_cache_head,
            True, SCALE, SOFTCAP, WINDOW, CHUNK, HEAD_DIM, DIM_PADDED, BLOCK_SIZE, TILE,
        )  # fmt: skip
        to = (token.to(tl.int64) * kv_heads * GROUP + head)[:, None] * HEAD_DIM + d[None, :]
        l_i = with_sinks(l_i, m_i, sinks, head, True)
        result = acc / tl.where(l_i == 0, 1.0, l_i)[:, None]
        tl.store(out + to, result.to(out.dtype.element_ty), mask=inside)


def attention_mixed(paged: Paged, cu_seqlens: Tensor, out: Tensor, context: Context) -> list[Launch]:
    """q [T, QH, D] over the caches -> out [T, QH, D]. Rows past cu_seqlens[S] are left as they are."""
    candidates = {
        f"{rows} rows w{warps} s{stages}": Candidate(launches=partial(_launches, paged, cu_seqlens, out, rows, warps, stages))
        for rows, warps, stages in (_CUTS if paged.head_dim <= _WIDE else _WIDE_CUTS)
        if rows >= paged.group
    }
    problem = Problem(
        name=f"attention mixed {paged}",
        kind="prefill",
        size=paged.tokens,
        candidates=candidates,
        policy=(Range(None, next(iter(candidates))),),
        operands=paged.operands(1, cu_seqlens),
        out=out,
        dimensions={**paged.dimensions(1, cu_seqlens), QUERY_LENGTH: SIZE},
    )
    return launches_of(problem, context)


def _launches(paged: Paged, cu_seqlens: Tensor, out: Tensor, rows: int, warps: int, stages: int, when: Condition) -> list[Launch]:
    block_q = rows // paged.group
    arguments = {**paged.arguments(), "cu_seqlens": cu_seqlens, "out": out, "sequences": paged.sequences, "kv_heads": paged.kv_heads}
    sinks, no_sinks = paged.sinks_or_none()
    constants = {**paged.score_constants(), **no_sinks, "BLOCK_Q": block_q, "ROWS": rows}
    return [
        Launch(
            function=attention_mixed_kernel,
            grid=(cdiv(paged.tokens, block_q) + paged.sequences, paged.kv_heads, 1),
            arguments={**arguments, **sinks},
            constants={**paged.constants(), **constants},
            num_warps=warps,
            num_stages=stages,
            when=(Condition(value=QUERY_LENGTH, minimum=2), when),
        )
    ]
