"""What both attention kernels do with a tile of keys and values: find it in the cache, and add it to a running softmax."""

import triton
import triton.language as tl


@triton.jit
def cache_rows(table, t, length, block_stride, head, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Where in a cache the positions t of a sequence lie, in elements; those from its length on are taken for its last.

    table: the sequence's row of the block table. head: where the key-value head begins within a block.
    """
    t = tl.minimum(t, length - 1)
    return tl.load(table + t // BLOCK_SIZE).to(tl.int64) * block_stride + head + t % BLOCK_SIZE * HEAD_DIM


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
