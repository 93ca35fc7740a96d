"""What both attention kernels share: their operands, and what they do with a tile of keys and values.

A tile is found in the cache, scored, and added to a running softmax.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import triton
import triton.language as tl

from ..attention.options import AttentionOptions
from .choices import SIZE, TABLE, Operand
from .launch import Size, Tensor

LOG2_E = math.log2(math.e)
"""Scores are exponents of 2: what they and the soft cap are multiplied with."""
_LOG2_E = tl.constexpr(LOG2_E)


@dataclass(frozen=True, kw_only=True)
class OverSequences:
    """Queries of a step's sequences, and where in paged caches these lie."""

    q: Tensor
    seq_lens: Tensor
    block_table: Tensor

    @property
    def tokens(self) -> Size:
        return self.q.shape[0]

    @property
    def sequences(self) -> Size:
        return self.seq_lens.shape[0]

    def lists(self, cu_seqlens: Tensor | None) -> tuple[Operand, ...]:
        """What a tuner must provide beside queries and caches."""
        starts = () if cu_seqlens is None else (Operand(name="cu_seqlens", tensor=cu_seqlens, content="starts"),)
        return (
            Operand(name="seq_lens", tensor=self.seq_lens, content="lengths"),
            Operand(name="block_table", tensor=self.block_table, content="blocks"),
            *starts,
        )

    def dimensions(self, sequences: Size, cu_seqlens: Tensor | None = None) -> Mapping[Size, Size]:
        """What the symbolic sizes are, in steps of SIZE tokens."""
        rows, width = self.block_table.shape
        sizes = {self.tokens: SIZE, self.sequences: sequences, rows: sequences, width: TABLE}
        if cu_seqlens is not None:
            sizes[cu_seqlens.shape[0]] = sequences + 1
        return {size: value for size, value in sizes.items() if isinstance(size, sympy.Symbol)}


@dataclass(frozen=True, kw_only=True)
class Paged(OverSequences):
    """Queries [T, QH, D] (heads may lie apart) over paged caches [blocks, KH, block_size, D]. sinks [QH]."""

    k_cache: Tensor
    v_cache: Tensor
    sinks: Tensor | None
    options: AttentionOptions

    @property
    def query_heads(self) -> int:
        return int(self.q.shape[1])

    @property
    def kv_heads(self) -> int:
        return int(self.k_cache.shape[1])

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.query_heads // self.kv_heads

    @property
    def head_dim(self) -> int:
        return int(self.q.shape[2])

    @property
    def block_size(self) -> int:
        return int(self.k_cache.shape[2])

    def __str__(self) -> str:
        window = f" window {self.options.window}" if self.options.window else ""
        chunk = f" chunk {self.options.chunk}" if self.options.chunk else ""
        softcap = " soft cap" if self.options.softcap else ""
        sinks = "" if self.sinks is None else " sinks"
        return f"{self.query_heads}/{self.kv_heads} heads of {self.head_dim}{window}{chunk}{softcap}{sinks}"

    def arguments(self) -> dict[str, Any]:
        """What a launch passes, by parameter."""
        caches = {"k": self.k_cache, "v": self.v_cache}
        strides = {f"{name}_block": cache.strides[0] for name, cache in caches.items()}
        strides |= {f"{name}_cache_head": cache.strides[1] for name, cache in caches.items()}
        tensors = {
            "q": self.q,
            "k_cache": self.k_cache,
            "v_cache": self.v_cache,
            "seq_lens": self.seq_lens,
            "block_table": self.block_table,
        }
        return {
            **tensors,
            **strides,
            "q_token": self.q.strides[0],
            "q_head": self.q.strides[1],
            "table_stride": self.block_table.strides[0],
        }

    def constants(self) -> dict[str, int]:
        """What kernels are compiled for."""
        padded = max(16, triton.next_power_of_2(self.head_dim))
        sizes = {"HEAD_DIM": self.head_dim, "DIM_PADDED": padded, "TILE": max(32, 8192 // padded)}
        return {"WINDOW": self.options.window, "CHUNK": self.options.chunk, "GROUP": self.group, **sizes}

    def score_constants(self) -> dict[str, Any]:
        """How a product becomes a score, in units of log2."""
        return {"SCALE": self.options.scale * LOG2_E, "SOFTCAP": self.options.softcap * LOG2_E, "BLOCK_SIZE": self.block_size}

    def sinks_or_none(self) -> tuple[dict[str, Tensor], dict[str, None]]:
        """The sinks as an argument of a launch, or as a constant where there are none."""
        return ({}, {"sinks": None}) if self.sinks is None else ({"sinks": self.sinks}, {})

    def operands(self, sequences: Size, cu_seqlens: Tensor | None = None) -> tuple[Operand, ...]:
        """What a tuner must provide, for so many sequences of TABLE blocks each."""
        caches = (
            Operand(name=f"{name}_cache", tensor=replace(cache, shape=(sequences * TABLE, *cache.shape[1:])), streamed=True)
            for name, cache in (("k", self.k_cache), ("v", self.v_cache))
        )
        sinks = () if self.sinks is None else (Operand(name="sinks", tensor=self.sinks),)
        return (Operand(name="q", tensor=self.q), *caches, *sinks, *self.lists(cu_seqlens))


@triton.jit
def first_seen(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first key that a query at `position` sees; at a negative position, where there is no query, the first of all."""
    position = tl.maximum(position, 0)
    first = position * 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    return first


@triton.jit
def cache_rows(table, t, first, length, block_stride, head, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Where in a cache the positions t of a sequence lie, in elements; for those before `first` and from its length on, where the nearest
    lies that is neither.

    What a window has left may hold anything, NaN too, and a weight of zero would not hide that.
    table: the sequence's row of the block table. head: where the key-value head begins within a block.
    """
    t = tl.minimum(tl.maximum(t, first), length - 1)
    return tl.load(table + t // BLOCK_SIZE).to(tl.int64) * block_stride + head + t % BLOCK_SIZE * HEAD_DIM


@triton.jit
def scores_of(products, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """The scores of queries times keys; with a SOFTCAP > 0, SOFTCAP * tanh(score / SOFTCAP). SCALE and SOFTCAP are in units of log2.

    tanh(y) is y * p(y^2) / q(y^2), with polynomials of degree 4 whose largest relative error up to y = 9 is smallest: below 3e-7 with
    roundings, where 1 - 2 / (1 + e^2y) would lose the small scores. NaN stays NaN.
    """
    scores = products * SCALE
    if SOFTCAP > 0:
        scores = tl.clamp(scores, -9.0 * SOFTCAP, 9.0 * SOFTCAP, propagate_nan=tl.PropagateNan.ALL)
        y = scores * (1.0 / SOFTCAP)
        square = y * y
        p = ((1.33546464e-8 * square + 2.06090695e-5) * square + 3.49558725e-3) * square + 0.133810249
        q = ((7.77655159e-7 * square + 3.28563346e-4) * square + 2.58769787e-2) * square + 0.467143405
        scores *= (p * square + 1.0) / (q * square + 1.0)
    return scores


@triton.jit
def with_sinks(l_i, m_i, sinks, heads, heads_inside):
    """The sums of weights l_i, relative to the scores m_i (-inf where a row has seen nothing), with those of the heads' sinks, if any."""
    if sinks is not None:
        sink = tl.load(sinks + heads, mask=heads_inside, other=0.0) * _LOG2_E
        l_i += tl.exp2(sink - tl.where(m_i == float("-inf"), 0.0, m_i))
    return l_i


@triton.jit
def softmax_step(scores, m_i, l_i, acc, v):
    """One step of online softmax: scores [R, L] float32, in units of log2 and -inf where hidden, and values v [L, D].

    m_i [R]: largest score so far; l_i [R]: sum of 2^(score - m_i); acc [R, D]: sum of 2^(score - m_i) * value.
    A row that has seen nothing yet has m_i -inf and zeros.
    """
    new_m = tl.maximum(m_i, tl.max(scores, 1))
    finite = tl.where(new_m == float("-inf"), 0.0, new_m)
    weights = tl.exp2(scores - finite[:, None])
    old = tl.exp2(m_i - finite)
    acc = tl.dot(weights.to(v.dtype), v, acc * old[:, None])
    return new_m, l_i * old + tl.sum(weights, 1), acc
