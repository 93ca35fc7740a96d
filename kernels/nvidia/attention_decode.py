"""Attention over the paged cache where every sequence has one new token.

The limit is reading the keys and values once. Sequences and key-value heads alone are too few
programs, so each sequence's tiles are dealt to `splits` programs (the fewer the more sequences),
about two for each multiprocessor; a second launch brings their results together in order. The
query heads that share a key-value head are the rows of one tl.dot, padded to 16.

With one split the result is final and the second launch is left out.
"""

from functools import partial
from typing import Any

import triton
import triton.language as tl

from .attention_tiles import Paged, cache_rows, first_seen, scores_of, softmax_step, with_sinks
from .choices import SIZE, Candidate, Problem, Range
from .context import Context, launches_of
from .launch import QUERY_LENGTH, Condition, Launch, Size, Tensor, cdiv

_MOST_SPLITS = 64
TOGETHER = 16
"""Splits that the second launch reads at once."""
ROWS = 16
_CUTS = ((2, 5), (1, 5), (4, 5), (2, 3), (4, 3))
"""Programs for each multiprocessor, and stages; the first is the policy's. The block table is read two stages ahead of keys and values,
of which with 5 two tiles are then on their way."""


@triton.jit
def share(length, split, splits, WINDOW: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """The positions [first, last) of a sequence that a split sees, and how many splits see any. Both ends are tiles', but for the last."""
    begin = 0
    if WINDOW + CHUNK > 0:
        begin = first_seen(length - 1, WINDOW, CHUNK) // TILE
    tiles = tl.cdiv(length, TILE) - begin
    per_split = tl.cdiv(tiles, splits)
    first = (begin + split * per_split) * TILE
    used = tl.cdiv(tiles, tl.maximum(per_split, 1))
    return first, tl.minimum(first + per_split * TILE, length), used


@triton.jit
def attention_decode_kernel(
    q, k_cache, v_cache, seq_lens, block_table, sinks, out, partial_acc, partial_m, partial_l,
    q_token, q_head, k_block, k_cache_head, v_block, v_cache_head, table_stride, splits, kv_heads,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One split of one sequence and key-value head.

    out [S, QH, D], or with SPLIT the parts: acc [S, KH, splits, GROUP, D], m_i and l_i [S, KH, splits, GROUP]
    float32. A split that sees nothing writes nothing there, and sinks are for who brings the parts together.
    """
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(seq_lens + sequence)
    first, last, _ = share(length, split, splits, WINDOW, CHUNK, TILE)
    row = tl.arange(0, ROWS)
    d = tl.arange(0, DIM_PADDED)
    heads = kv_head * GROUP + row
    q_inside = (row < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    queries = tl.load(q + sequence * q_token + heads[:, None] * q_head + d[None, :], mask=q_inside, other=0.0)
    m_i = tl.full((ROWS,), float("-inf"), tl.float32)
    l_i = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM_PADDED), tl.float32)
    table = block_table + sequence * table_stride
    seen_from = 0
    if WINDOW + CHUNK > 0:
        seen_from = first_seen(length - 1, WINDOW, CHUNK)
    for start in range(first, last, TILE):
        t = start + tl.arange(0, TILE)
        k_at = cache_rows(table, t, seen_from, length, k_block, kv_head * k_cache_head, BLOCK_SIZE, HEAD_DIM)
        v_at = cache_rows(table, t, seen_from, length, v_block, kv_head * v_cache_head, BLOCK_SIZE, HEAD_DIM)
        if HEAD_DIM == DIM_PADDED:
            keys = tl.load(k_cache + k_at[None, :] + d[:, None])
            values = tl.load(v_cache + v_at[:, None] + d[None, :])
        else:
            keys = tl.load(k_cache + k_at[None, :] + d[:, None], mask=(d < HEAD_DIM)[:, None], other=0.0)
            values = tl.load(v_cache + v_at[:, None] + d[None, :], mask=(d < HEAD_DIM)[None, :], other=0.0)
        seen = t < length
        if WINDOW + CHUNK > 0:
            seen &= t >= seen_from
        scores = tl.where(seen[None, :], scores_of(tl.dot(queries.to(keys.dtype), keys), SCALE, SOFTCAP), float("-inf"))
        m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc, values)
    if SPLIT:
        if first < last:
            part = ((sequence * kv_heads + kv_head) * splits + split) * GROUP + row
            tl.store(partial_m + part, m_i, mask=row < GROUP)
            tl.store(partial_l + part, l_i, mask=row < GROUP)
            tl.store(partial_acc + part[:, None] * HEAD_DIM + d[None, :], acc, mask=q_inside)
    else:
        l_i = with_sinks(l_i, m_i, sinks, heads, row < GROUP)
        result = acc / tl.where(l_i == 0, 1.0, l_i)[:, None]
        to = (sequence * kv_heads * GROUP + heads)[:, None] * HEAD_DIM + d[None, :]
        tl.store(out + to, result.to(out.dtype.element_ty), mask=q_inside)


@triton.jit
def attention_combine_kernel(
    seq_lens, sinks, out, partial_acc, partial_m, partial_l, out_sequence, out_head, splits, kv_heads,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PADDED: tl.constexpr, TILE: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """What the splits of one sequence and query head found, TOGETHER of them at a time; zero for a sequence of no tokens.

    out_sequence and out_head: strides of out [S, QH, D].
    """
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    _, _, used = share(tl.load(seq_lens + sequence), 0, splits, WINDOW, CHUNK, TILE)
    d = tl.arange(0, DIM_PADDED)
    m_i = float("-inf")
    l_i = 0.0
    acc = tl.zeros((DIM_PADDED,), tl.float32)
    for begin in range(0, used, TOGETHER):
        split = begin + tl.arange(0, TOGETHER)
        inside = split < used
        part = ((sequence * kv_heads + head // GROUP) * splits + split) * GROUP + head % GROUP
        part_m = tl.load(partial_m + part, mask=inside, other=float("-inf"))
        part_l = tl.load(partial_l + part, mask=inside, other=0.0)
        at = part[:, None] * HEAD_DIM + d[None, :]
        part_acc = tl.load(partial_acc + at, mask=inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        new_m = tl.maximum(m_i, tl.max(part_m, 0))
        weights = tl.exp2(part_m - new_m)
        old = tl.exp2(m_i - new_m)
        l_i = l_i * old + tl.sum(part_l * weights, 0)
        acc = acc * old + tl.sum(part_acc * weights[:, None], 0)
        m_i = new_m
    l_i = with_sinks(l_i, m_i, sinks, head, True)
    result = acc / tl.where(l_i == 0, 1.0, l_i)
    to = sequence * out_sequence + head.to(tl.int64) * out_head + d
    tl.store(out + to, result.to(out.dtype.element_ty), mask=d < HEAD_DIM)


def attention_decode(paged: Paged, out: Tensor, context: Context) -> list[Launch]:
    """q [S, QH, D] over the caches -> out [S, QH, D], in steps whose sequences have one new token each."""
    assert paged.group <= ROWS, f"{paged.group} query heads share a key-value head; up to {ROWS} may"
    candidates = {
        f"{programs} programs s{stages}": Candidate(launches=partial(_launches, paged, out, context, programs, stages))
        for programs, stages in _CUTS
    }
    problem = Problem(
        name=f"attention decode {paged}",
        kind="decode",
        size=paged.sequences,
        candidates=candidates,
        policy=(Range(None, next(iter(candidates))),),
        operands=paged.operands(SIZE),
        out=out,
        dimensions={**paged.dimensions(SIZE), QUERY_LENGTH: 1},
    )
    return launches_of(problem, context)


def _launches(paged: Paged, out: Tensor, context: Context, programs_each: int, stages: int, when: Condition) -> list[Launch]:
    sequences, kv_heads, group = paged.sequences, paged.kv_heads, paged.group
    programs = min(programs_each * context.device.multiprocessors, _MOST_SPLITS * kv_heads)
    one_token = Condition(value=QUERY_LENGTH, minimum=1, maximum=1)
    split_steps = (one_token, Condition(value=sequences * kv_heads, maximum=programs - 1), when)
    whole_steps = (one_token, Condition(value=sequences * kv_heads, minimum=programs), when)
    splits: Size = cdiv(programs, sequences * kv_heads)
    part = (sequences, kv_heads, splits, group)
    partials = {
        "partial_acc": context.allocate("float32", (*part, paged.head_dim)),
        "partial_m": context.allocate("float32", part),
        "partial_l": context.allocate("float32", part),
    }
    arguments: dict[str, Any] = {**paged.arguments(), "kv_heads": kv_heads}
    dims = paged.constants()
    constants = {**dims, **paged.score_constants(), "ROWS": ROWS}
    strides = {"out_sequence": out.strides[0], "out_head": out.strides[1]}
    sinks, no_sinks = paged.sinks_or_none()
    return [
        Launch(
            function=attention_decode_kernel,
            grid=(sequences, kv_heads, splits),
            arguments={**arguments, **partials, "splits": splits},
            constants={**constants, "SPLIT": True, "out": None, "sinks": None},
            num_stages=stages,
            when=split_steps,
        ),
        Launch(
            function=attention_combine_kernel,
            grid=(sequences, paged.query_heads, 1),
            arguments={"seq_lens": paged.seq_lens, **sinks, "out": out, **partials, **strides, "splits": splits, "kv_heads": kv_heads},
            constants={**dims, **no_sinks, "TOGETHER": TOGETHER},
            num_warps=1,
            when=split_steps,
        ),
        Launch(
            function=attention_decode_kernel,
            grid=(sequences, kv_heads, 1),
            arguments={**arguments, **sinks, "out": out, "splits": 1},
            constants={**constants, **no_sinks, "SPLIT": False, **dict.fromkeys(partials)},
            num_stages=stages,
            when=whole_steps,
        ),
    ]
