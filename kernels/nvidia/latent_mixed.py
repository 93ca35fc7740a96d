"""Attention over latents where some sequence has more than one new token.

Bound by the tensor cores: 4 L + 2 R operations per query, head and latent. A program takes 64 rows: new tokens of one sequence with all
heads, or with 64 of them one token at a time. Which sequence and which of its tokens a program has is found as in attention_mixed.py.
"""

from functools import partial

import triton
import triton.language as tl

from .attention_mixed import tokens_of_tile
from .choices import SIZE, Candidate, Problem, Range
from .context import Context, launches_of
from .latent_decode import heads_of_programs
from .latent_tiles import Latents, load_queries, take_in_latents
from .launch import QUERY_LENGTH, Condition, Launch, Tensor, cdiv

_ROWS = 64
_CUTS = ((64, 8, 3), (32, 8, 5))
"""Latents at once, warps and stages; the first is the policy's. As in latent_decode.py."""


@triton.jit
def latent_mixed_kernel(
    q, q_rope, cache, cu_seqlens, seq_lens, block_table, out,
    q_head, q_token, rope_token, rope_head, cache_block, table_stride, out_head, out_token, sequences,
    SCALE: tl.constexpr, HEADS: tl.constexpr, HEADS_EACH: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr,
    RANK_PADDED: tl.constexpr, ROPE_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, BLOCK_Q: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Up to BLOCK_Q new tokens of one sequence and HEADS_EACH heads; row r is token r // HEADS_EACH, head r % HEADS_EACH of these."""
    sequence, first_token, end = tokens_of_tile(cu_seqlens, sequences, tl.program_id(1), BLOCK_Q)
    if first_token < end:
        length = tl.load(seq_lens + sequence)
        row = tl.arange(0, ROWS)
        token = first_token + row // HEADS_EACH
        head = tl.program_id(0) * HEADS_EACH + row % HEADS_EACH
        inside = (row < BLOCK_Q * HEADS_EACH) & (token < end)
        if HEADS % HEADS_EACH > 0:  # registers are scarce here
            inside &= head < HEADS
        plain, turned = load_queries(
            q, q_rope, token.to(tl.int64), head, inside, q_head, q_token, rope_token, rope_head, RANK, ROPE, RANK_PADDED, ROPE_PADDED
        )
        plain = plain.to(cache.dtype.element_ty)
        turned = turned.to(cache.dtype.element_ty)
        to_position = length - end
        position = token + to_position
        m_i = tl.full((ROWS,), float("-inf"), tl.float32)
        l_i = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, RANK_PADDED), tl.float32)
        table = block_table + sequence.to(tl.int64) * table_stride
        last = tl.minimum(first_token + BLOCK_Q, end) + to_position
        m_i, l_i, acc = take_in_latents(
            m_i, l_i, acc, plain, turned, position, 0, last, cache, table, length, cache_block,
            SCALE, RANK, ROPE, RANK_PADDED, ROPE_PADDED, BLOCK_SIZE, TILE,
        )  # fmt: skip
        d = tl.arange(0, RANK_PADDED)
        result = acc * (1.0 / tl.where(l_i == 0, 1.0, l_i))[:, None]
        to = (head.to(tl.int64) * out_head + token.to(tl.int64) * out_token)[:, None] + d[None, :]
        tl.store(out + to, result.to(out.dtype.element_ty), mask=inside[:, None] & (d < RANK)[None, :])


def latent_mixed(latents: Latents, cu_seqlens: Tensor, out: Tensor, context: Context) -> list[Launch]:
    """q [QH, T, L] over the cache -> out [QH, T, L]. Rows past cu_seqlens[S] are left as they are."""
    candidates = {
        f"t{tile} w{warps} s{stages}": Candidate(launches=partial(_launches, latents, cu_seqlens, out, tile, warps, stages))
        for tile, warps, stages in _CUTS
    }
    problem = Problem(
        name=f"latent attention mixed {latents}",
        kind="prefill",
        size=latents.tokens,
        candidates=candidates,
        policy=(Range(None, next(iter(candidates))),),
        operands=latents.operands(1, cu_seqlens),
        out=out,
        dimensions={**latents.dimensions(1, cu_seqlens), QUERY_LENGTH: SIZE},
    )
    return launches_of(problem, context)


def _launches(latents: Latents, cu_seqlens: Tensor, out: Tensor, tile: int, warps: int, stages: int, when: Condition) -> list[Launch]:
    blocks, heads_each = heads_of_programs(latents.heads, _ROWS)
    block_q = _ROWS // heads_each
    strides = {"out_head": out.strides[0], "out_token": out.strides[1]}
    return [
        Launch(
            function=latent_mixed_kernel,
            grid=(blocks, cdiv(latents.tokens, block_q) + latents.sequences, 1),
            arguments={**latents.arguments(), **strides, "cu_seqlens": cu_seqlens, "out": out, "sequences": latents.sequences},
            constants={**latents.constants(tile), "HEADS_EACH": heads_each, "BLOCK_Q": block_q, "ROWS": _ROWS},
            num_warps=warps,
            num_stages=stages,
            when=(Condition(value=QUERY_LENGTH, minimum=2), when),
        )
    ]
