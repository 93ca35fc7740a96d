"""Attention over latents where every sequence has one new token.

The rows of a program are heads of one token, up to 64 of them. With a few heads the limit is reading the latents once. Of 128 heads
each number takes 256 (2 L + R) / (L + R) operations, 242 a byte where L is 512 and R 64, and an H200's tensor cores do 206 while a
byte is read: they are the limit then, and 64 rows are what wgmma wants. Blocks of heads of the same latents run beside each other,
so that one of them reads memory and the others L2. As in attention_decode.py, each sequence's tiles are dealt to `splits` programs
where sequences and blocks of heads are too few.
"""

from functools import partial
from typing import Any

import triton
import triton.language as tl

from .attention_decode import TOGETHER, attention_combine_kernel, share
from .choices import SIZE, Candidate, Problem, Range
from .context import Context, launches_of
from .latent_tiles import Latents, load_queries, take_in_latents
from .launch import QUERY_LENGTH, Condition, Launch, Size, Tensor, cdiv

_MOST_SPLITS = 128
"""With 16 heads a single sequence should keep most multiprocessors reading; the parts of more splits would be as large as its latents."""
_CUTS = {
    16: ((2, 32, 4, 5), (1, 32, 4, 5), (4, 32, 4, 5), (2, 32, 4, 3), (2, 32, 8, 5)),
    32: ((1, 32, 8, 5), (2, 32, 8, 5), (1, 64, 8, 3)),
    64: ((1, 64, 8, 3), (2, 64, 8, 3), (1, 32, 8, 5)),
}
"""By rows of a program: programs for each multiprocessor, latents at once, warps, stages. The first is the policy's: as many programs as
are resident at the same time. With 5 stages two tiles are on their way while one is multiplied, with 3 one."""


@triton.jit
def latent_decode_kernel(
    q, q_rope, cache, seq_lens, block_table, out, partial_acc, partial_m, partial_l,
    q_head, q_token, rope_token, rope_head, cache_block, table_stride, out_head, out_sequence, splits,
    SCALE: tl.constexpr, SPLIT: tl.constexpr, HEADS: tl.constexpr, HEADS_EACH: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr,
    RANK_PADDED: tl.constexpr, ROPE_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """HEADS_EACH heads of one sequence, and one split of it.

    out [QH, S, L], or with SPLIT the parts: acc [S, splits, QH, L], m_i and l_i [S, splits, QH] float32. A split that sees nothing
    writes nothing there.
    """
    split = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    length = tl.load(seq_lens + sequence)
    first, last, _ = share(length, split, splits, 0, 0, TILE)
    row = tl.arange(0, ROWS)
    head = tl.program_id(0) * HEADS_EACH + row
    inside = (row < HEADS_EACH) & (head < HEADS)
    plain, turned = load_queries(
        q, q_rope, sequence, head, inside, q_head, q_token, rope_token, rope_head, RANK, ROPE, RANK_PADDED, ROPE_PADDED
    )
    m_i = tl.full((ROWS,), float("-inf"), tl.float32)
    l_i = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, RANK_PADDED), tl.float32)
    m_i, l_i, acc = take_in_latents(
        m_i, l_i, acc, plain.to(cache.dtype.element_ty), turned.to(cache.dtype.element_ty), tl.zeros_like(row) + length - 1, first, last,
        cache, block_table + sequence * table_stride, length, cache_block,
        SCALE, RANK, ROPE, RANK_PADDED, ROPE_PADDED, BLOCK_SIZE, TILE,
    )  # fmt: skip
    d = tl.arange(0, RANK_PADDED)
    element_inside = inside[:, None] & (d < RANK)[None, :]
    if SPLIT:
        if first < last:
            part = (sequence * splits + split) * HEADS + head
            tl.store(partial_m + part, m_i, mask=inside)
            tl.store(partial_l + part, l_i, mask=inside)
            tl.store(partial_acc + part[:, None] * RANK + d[None, :], acc, mask=element_inside)
    else:
        result = acc * (1.0 / tl.where(l_i == 0, 1.0, l_i))[:, None]
        to = (head.to(tl.int64) * out_head + sequence * out_sequence)[:, None] + d[None, :]
        tl.store(out + to, result.to(out.dtype.element_ty), mask=element_inside)


def latent_decode(latents: Latents, out: Tensor, context: Context) -> list[Launch]:
    """q [QH, S, L] over the cache -> out [QH, S, L], in steps whose sequences have one new token each."""
    rows = next((rows for rows in _CUTS if rows >= latents.heads), max(_CUTS))
    candidates = {
        f"{programs} programs t{tile} w{warps} s{stages}": Candidate(
            launches=partial(_launches, latents, out, context, rows, programs, tile, warps, stages)
        )
        for programs, tile, warps, stages in _CUTS[rows]
    }
    problem = Problem(
        name=f"latent attention decode {latents}",
        kind="decode",
        size=latents.sequences,
        candidates=candidates,
        policy=(Range(None, next(iter(candidates))),),
        operands=latents.operands(SIZE),
        out=out,
        dimensions={**latents.dimensions(SIZE), QUERY_LENGTH: 1},
    )
    return launches_of(problem, context)


def _launches(
    latents: Latents,
    out: Tensor,
    context: Context,
    rows: int,
    programs_each: int,
    tile: int,
    warps: int,
    stages: int,
    when: Condition,
) -> list[Launch]:
    sequences, blocks, heads_each = latents.sequences, *heads_of_programs(latents.heads, rows)
    programs = min(programs_each * context.device.multiprocessors, _MOST_SPLITS * blocks)
    one_token = Condition(value=QUERY_LENGTH, minimum=1, maximum=1)
    split_steps = (one_token, Condition(value=sequences * blocks, maximum=programs // 2), when)
    whole_steps = (one_token, Condition(value=sequences * blocks, minimum=programs // 2 + 1), when)
    splits: Size = programs // (sequences * blocks)  # rounded down, so that none waits for another to end
    part = (sequences, splits, latents.heads)
    partials = {
        "partial_acc": context.allocate("float32", (*part, latents.rank)),
        "partial_m": context.allocate("float32", part),
        "partial_l": context.allocate("float32", part),
    }
    strides = {"out_head": out.strides[0], "out_sequence": out.strides[1]}
    arguments: dict[str, Any] = {**latents.arguments(), **strides}
    constants = {**latents.constants(tile), "HEADS_EACH": heads_each, "ROWS": rows}
    return [
        Launch(
            function=latent_decode_kernel,
            grid=(blocks, splits, sequences),
            arguments={**arguments, **partials, "splits": splits},
            constants={**constants, "SPLIT": True, "out": None},
            num_warps=warps,
            num_stages=stages,
            when=split_steps,
        ),
        Launch(
            function=attention_combine_kernel,
            grid=(sequences, latents.heads, 1),
            arguments={"seq_lens": latents.seq_lens, "out": out, **partials, **strides, "splits": splits, "kv_heads": 1},
            constants={
                "sinks": None,
                "WINDOW": 0,
                "CHUNK": 0,
                "GROUP": latents.heads,
                "HEAD_DIM": latents.rank,
                "DIM_PADDED": constants["RANK_PADDED"],
                "TILE": tile,
                "TOGETHER": TOGETHER,
            },
            num_warps=4,
            when=split_steps,
        ),
        Launch(
            function=latent_decode_kernel,
            grid=(blocks, 1, sequences),
            arguments={**arguments, "out": out, "splits": 1},
            constants={**constants, "SPLIT": False, **dict.fromkeys(partials)},
            num_warps=warps,
            num_stages=stages,
            when=whole_steps,
        ),
    ]


def heads_of_programs(heads: int, rows: int) -> tuple[int, int]:
    """How many programs share the heads of a token if each may have so many rows, and how many heads each then has."""
    programs = cdiv(heads, rows)
    return programs, cdiv(heads, programs)
