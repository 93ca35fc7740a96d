"""What both kernels of attention over latents share: their operands, and the walk over what is kept.

All heads see the same latents, so the rows of a program are heads and tokens alike. A tile of latents is loaded once: its rows
are keys, and their first L elements values.
"""

from dataclasses import dataclass, replace
from typing import Any

import triton
import triton.language as tl

from .attention_tiles import LOG2_E, OverSequences, cache_rows, softmax_step
from .choices import TABLE, Operand
from .launch import Size, Tensor

NARROWEST = 16
"""Of the sides of a tl.dot."""


@dataclass(frozen=True, kw_only=True)
class Latents(OverSequences):
    """Queries [QH, T, L] and their part with positions [T, QH, R] over a paged cache [blocks, 1, block_size, L + R]."""

    q_rope: Tensor
    cache: Tensor
    scale: float

    @property
    def heads(self) -> int:
        return int(self.q.shape[0])

    @property
    def tokens(self) -> Size:
        return self.q.shape[1]

    @property
    def rank(self) -> int:
        """L"""
        return int(self.q.shape[2])

    @property
    def rope(self) -> int:
        """R"""
        return int(self.q_rope.shape[2])

    def __str__(self) -> str:
        return f"{self.heads} heads of {self.rank} + {self.rope}"

    def arguments(self) -> dict[str, Any]:
        """What a launch passes, by parameter."""
        return {
            "q": self.q,
            "q_rope": self.q_rope,
            "cache": self.cache,
            "seq_lens": self.seq_lens,
            "block_table": self.block_table,
            "q_head": self.q.strides[0],
            "q_token": self.q.strides[1],
            "rope_token": self.q_rope.strides[0],
            "rope_head": self.q_rope.strides[1],
            "cache_block": self.cache.strides[0],
            "table_stride": self.block_table.strides[0],
        }

    def constants(self, tile: int) -> dict[str, Any]:
        """What kernels that take so many latents at once are compiled for."""
        return {
            "SCALE": self.scale * LOG2_E,
            "HEADS": self.heads,
            "RANK": self.rank,
            "ROPE": self.rope,
            "RANK_PADDED": padded(self.rank),
            "ROPE_PADDED": padded(self.rope),
            "BLOCK_SIZE": int(self.cache.shape[2]),
            "TILE": tile,
        }

    def operands(self, sequences: Size, cu_seqlens: Tensor | None = None) -> tuple[Operand, ...]:
        """What a tuner must provide, for so many sequences of TABLE blocks each."""
        kept = replace(self.cache, shape=(sequences * TABLE, *self.cache.shape[1:]))
        return (
            Operand(name="q", tensor=self.q),
            Operand(name="q_rope", tensor=self.q_rope),
            Operand(name="cache", tensor=kept, streamed=True),
            *self.lists(cu_seqlens),
        )


def padded(width: int) -> int:
    """The side of a tile that holds `width` elements."""
    return max(NARROWEST, int(triton.next_power_of_2(width)))


@triton.jit
def load_queries(
    q, q_rope, token, head, inside, q_head, q_token, rope_token, rope_head,
    RANK: tl.constexpr, ROPE: tl.constexpr, RANK_PADDED: tl.constexpr, ROPE_PADDED: tl.constexpr,
):  # fmt: skip
    """Rows of both parts of the queries, for each its token and head; zero where a row is not inside. token: int64."""
    d = tl.arange(0, RANK_PADDED)
    r = tl.arange(0, ROPE_PADDED)
    at = head.to(tl.int64) * q_head + token * q_token
    plain = tl.load(q + at[:, None] + d[None, :], mask=inside[:, None] & (d < RANK)[None, :], other=0.0)
    at = token * rope_token + head * rope_head
    turned = tl.load(q_rope + at[:, None] + r[None, :], mask=inside[:, None] & (r < ROPE)[None, :], other=0.0)
    return plain, turned


@triton.jit
def take_in_latents(
    m_i, l_i, acc, plain, turned, position, first, last, cache, table, length, cache_block,
    SCALE: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, RANK_PADDED: tl.constexpr, ROPE_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Walk the latents first..last - 1 of a sequence. A row sees those up to its `position` in it."""
    d = tl.arange(0, RANK_PADDED)
    r = tl.arange(0, ROPE_PADDED)
    for start in range(first, last, TILE):
        t = start + tl.arange(0, TILE)
        at = cache_rows(table, t, 0, length, cache_block, 0, BLOCK_SIZE, RANK + ROPE)[:, None]
        if RANK == RANK_PADDED:
            latents = tl.load(cache + at + d[None, :])
        else:
            latents = tl.load(cache + at + d[None, :], mask=(d < RANK)[None, :], other=0.0)
        if ROPE == ROPE_PADDED:
            keys = tl.load(cache + at + RANK + r[None, :])
        else:
            keys = tl.load(cache + at + RANK + r[None, :], mask=(r < ROPE)[None, :], other=0.0)
        products = tl.dot(turned, tl.trans(keys), tl.dot(plain, tl.trans(latents)))
        scores = tl.where(t[None, :] <= position[:, None], products * SCALE, float("-inf"))
        m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc, latents)
    return m_i, l_i, acc
