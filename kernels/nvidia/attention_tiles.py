"""What both attention kernels do with a tile of keys and values: find it in the cache, score it, and add it to a running softmax."""

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)
"""Scores are exponents of 2: what they and the soft cap are multiplied with."""
_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def cache_rows(table, t, length, block_stride, head, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Where in a cache the positions t of a sequence lie, in elements; those from its length on are taken for its last.

    table: the sequence's row of the block table. head: where the key-value head begins within a block.
    """
    t = tl.minimum(t, length - 1)
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
def with_sinks(total, most, sinks, heads, heads_inside):
    """The sums of weights, relative to the scores `most` (-inf where a row has seen nothing), with those of the heads' sinks, if any."""
    if sinks is not None:
        sink = tl.load(sinks + heads, mask=heads_inside, other=0.0) * _LOG2_E
        total += tl.exp2(sink - tl.where(most == float("-inf"), 0.0, most))
    return total


@triton.jit
def softmax_step(scores, most, total, sums, v):
    """Take in scores [R, L] float32, in units of log2 and -inf where hidden, and values v [L, D].

    most [R]: largest score so far; total [R]: sum of 2^(score - most); sums [R, D]: of these times the values.
    A row that has seen nothing yet has most -inf and zeros.
    """
    new_most = tl.maximum(most, tl.max(scores, 1))
    finite = tl.where(new_most == float("-inf"), 0.0, new_most)
    weights = tl.exp2(scores - finite[:, None])
    old = tl.exp2(most - finite)
    sums = tl.dot(weights.to(v.dtype), v, sums * old[:, None])
    return new_most, total * old + tl.sum(weights, 1), sums
