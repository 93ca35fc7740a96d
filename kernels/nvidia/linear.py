"""Dense linear: out [M, N] = x [M, K] w^T + bias + residual, for three ranges of the rows M.

M <= 16 (decode). The limit is reading w once: 2 N K bytes at 4.8 TB/s. The tensor cores are idle
anyway, so tokens are padded to their 16 rows. What counts is bytes in flight (about 32 KB per
multiprocessor) and few launches. A program therefore owns 16 to 64 rows of w, as many as still
leave nearly every multiprocessor a program, and all of K, which its four warps split among
themselves: step by step each takes its own slice, as one batch of a batched tl.dot, and the four
sums are added in a fixed order at the end. A chain of dependent products is so four times shorter
than K / 16, and no second launch has to add partial sums.

16 < M <= 64, and more rows as long as large tiles would leave multiprocessors idle: tiles of
64 x 64 by wgmma; K is cut among programs where even these are few, and a second launch adds the
float32 partial sums in order.

Beyond: 2 M N K operations at about 790 TFLOP/s. A 128 x 256 tile reads 1 / 85 element from shared
memory per multiplication, few enough for wgmma to stay busy; 128 x 128 where these tiles would
be too few. Tiles are numbered so that those at work together share rows of x and w in L2.
"""

from typing import Any

import triton
import triton.language as tl

from .launch import Condition, Context, Launch, Tensor, cdiv
from .linear_launches import FEW_ROWS, Linear, Tile, block_n_of_few_rows, finish, grouped_tile, many_rows

_SLICES = 4
"""Slices of K in `few_rows_kernel`, one per warp."""
_FEW_ROWS_STEPS = {16: (64, 7), 32: (64, 5), 64: (32, 6)}
"""For each number of w's rows per program: K per slice and step, and stages. About 100 KB, so that two programs share a multiprocessor."""


@triton.jit
def few_rows_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
    EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """All of out[:, tile of BLOCK_N], for up to 16 rows. A step takes SLICES x BLOCK_K of K."""
    m = tl.arange(0, 16)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, SLICES)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    x_tile = x + m[None, :, None] * x_stride + k[:, None, :]
    row = tl.minimum(n, N - 1).to(tl.int64) * w_stride
    w_tile = w + row[None, None, :] + k[:, :, None]
    exists = (m < rows)[None, :, None]
    sums = tl.zeros((SLICES, 16, BLOCK_N), tl.float32)
    for done in range(0, K, SLICES * BLOCK_K):
        if EVEN_K:
            a = tl.load(x_tile + done, mask=exists, other=0.0)
            b = tl.load(w_tile + done)
        else:
            a = tl.load(x_tile + done, mask=exists & (k[:, None, :] < K - done), other=0.0)
            b = tl.load(w_tile + done, mask=k[:, :, None] < K - done, other=0.0)
        sums = tl.dot(a, b.to(a.dtype), sums)
    finish(tl.sum(sums, 0), out, bias, residual, out_stride, residual_stride, m, n, rows, N)


@triton.jit
def tile_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
    SPLIT_K: tl.constexpr, PARTIAL: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the result, or with PARTIAL its sum over SPLIT_K of K, into out [splits, rows, N] float32."""
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_tile = w + tl.minimum(n, N - 1).to(tl.int64)[None, :] * w_stride + k[:, None]
    begin = tl.program_id(1) * SPLIT_K
    end = tl.minimum(begin + SPLIT_K, K) if PARTIAL else K
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(begin, end, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_tile + done)
            b = tl.load(w_tile + done)
        else:
            a = tl.load(x_tile + done, mask=k[None, :] < K - done, other=0.0)
            b = tl.load(w_tile + done, mask=k[:, None] < K - done, other=0.0)
        sums = tl.dot(a, b.to(a.dtype), sums)
    if PARTIAL:
        out += tl.program_id(1).to(tl.int64) * rows * N
    finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N)


SMALL = Tile(m=64, n=64, k=128, warps=4, stages=3)
SQUARE = Tile(m=128, n=128, k=64, warps=8, stages=4)
WIDE = Tile(m=128, n=256, k=64, warps=8, stages=4)


def few_rows(linear: Linear, multiprocessors: int) -> Launch:
    """For M <= 16."""
    block_n = block_n_of_few_rows(linear.out_features, multiprocessors)
    block_k, stages = _FEW_ROWS_STEPS[block_n]
    return linear.launch(
        few_rows_kernel,
        (cdiv(linear.out_features, block_n), 1, 1),
        {"EVEN_K": linear.in_features % (_SLICES * block_k) == 0, "BLOCK_N": block_n, "BLOCK_K": block_k, "SLICES": _SLICES},
        num_stages=stages,
        when=(Condition(value=linear.rows, maximum=FEW_ROWS),),
    )


def linear_dense(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """x [T, K], w [N, K], bias [N]?, residual [T, N]?, out_features -> [T, N]. Rows of x and residual may lie apart."""
    x, w, bias, residual, _ = arguments
    linear = Linear(x=x, w=w, bias=bias, residual=residual, out=out, in_features=x.shape[1])
    return [few_rows(linear, context.device.multiprocessors), *many_rows(tile_kernel, linear, context, tiles=(SMALL, SQUARE, WIDE))]
