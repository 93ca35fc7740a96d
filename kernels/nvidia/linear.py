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

What a tuner may try besides: other tiles, and persistent programs whose tiles come by the copy engine (TMA).
"""

from typing import Any

import triton
import triton.language as tl

from .context import Context, Emit
from .launch import Launch, Tensor
from .linear_cuts import Family, FewRows, Tile, linear_launches
from .linear_launches import Linear, finish, grouped_tile, product, rows_of

_SLICES = 4
"""Slices of K in `few_rows_kernel`, one per warp."""
FEW = (
    # About 100 KB, so that two programs share a multiprocessor.
    FewRows(n=16, k=64, stages=7),
    FewRows(n=32, k=64, stages=5),
    FewRows(n=64, k=32, stages=6),
    # Deeper, with a multiprocessor for one program; and shallower, for three.
    FewRows(n=32, k=64, stages=8),
    FewRows(n=16, k=64, stages=4),
)
"""k: of K per slice and step."""


@triton.jit
def few_rows(
    x, tokens, w, out, bias, residual, tile, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """All of out[:, tile of BLOCK_N], for up to 16 rows. A step takes SLICES x BLOCK_K of K. tokens: see `rows_of`."""
    m = tl.arange(0, 16)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, SLICES)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    x_tile = x + rows_of(tokens, m, rows)[None, :, None] * x_stride + k[:, None, :]
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
        sums = product(a, b, sums)
    finish(tl.sum(sums, 0), out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@triton.jit
def few_rows_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """A program per tile of BLOCK_N."""
    few_rows(
        x, None, w, out, bias, residual, tl.program_id(0), rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER,
        EVEN_K, BLOCK_N, BLOCK_K, SLICES,
    )  # fmt: skip


@triton.jit
def one_tile(
    x, tokens, w, out, bias, residual, tile_m, tile_n, begin, end, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
    MULTIPLIER: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the result, summed from begin to end of K. tokens: see `rows_of`."""
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x + rows_of(tokens, tl.minimum(m, rows - 1), rows).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_tile = w + tl.minimum(n, N - 1).to(tl.int64)[None, :] * w_stride + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(begin, end, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_tile + done)
            b = tl.load(w_tile + done)
        else:
            a = tl.load(x_tile + done, mask=k[None, :] < K - done, other=0.0)
            b = tl.load(w_tile + done, mask=k[:, None] < K - done, other=0.0)
        sums = product(a, b, sums)
    finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@triton.jit
def tile_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    SPLIT_K: tl.constexpr, PARTIAL: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program per tile, or with PARTIAL per SPLIT_K of K of one, whose sum goes into out [splits, rows, N] float32."""
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    begin = tl.program_id(1) * SPLIT_K
    end = tl.minimum(begin + SPLIT_K, K) if PARTIAL else K
    if PARTIAL:
        out += tl.program_id(1).to(tl.int64) * rows * N
    one_tile(
        x, None, w, out, bias, residual, tile_m, tile_n, begin, end, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
        MULTIPLIER, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit
def persistent_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    PROGRAMS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Every PROGRAMS-th tile of the result; x and w by the copy engine, which fills with zeros what is not there."""
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    x_tiles = tl.make_tensor_descriptor(x, shape=[rows, K], strides=[x_stride, 1], block_shape=[BLOCK_M, BLOCK_K])
    w_tiles = tl.make_tensor_descriptor(w, shape=[N, K], strides=[w_stride, 1], block_shape=[BLOCK_N, BLOCK_K])
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS):
        tile_m, tile_n = grouped_tile(tile, tiles_m, tiles_n, 8)
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for done in range(0, K, BLOCK_K):
            a = x_tiles.load([tile_m * BLOCK_M, done])
            b = w_tiles.load([tile_n * BLOCK_N, done])
            sums = tl.dot(a, b.T.to(a.dtype), sums)
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


SMALL = Tile(m=64, n=64, k=128, warps=4, stages=3)
SQUARE = Tile(m=128, n=128, k=64, warps=8, stages=4)
WIDE = Tile(m=128, n=256, k=64, warps=8, stages=4)
FLAT = Tile(m=64, n=128, k=64, warps=4, stages=4)
FLATTER = Tile(m=64, n=256, k=64, warps=4, stages=3)
FAMILY = Family(
    name="dense",
    few_rows=few_rows_kernel,
    few=FEW,
    few_constants=lambda in_features, cut: {"EVEN_K": in_features % (_SLICES * cut.k) == 0, "BLOCK_K": cut.k, "SLICES": _SLICES},
    tile=tile_kernel,
    tiles=(SMALL, SQUARE, WIDE),
    more_tiles=(FLAT, FLATTER),
    persistent=persistent_kernel,
    persistent_tiles=(SQUARE, WIDE),
)


FLOAT32 = Family(
    name="float32",
    few_rows=few_rows_kernel,
    few=tuple(FewRows(n=n, k=64, stages=3) for n in (16, 32, 64)),
    few_constants=FAMILY.few_constants,
    tile=tile_kernel,
    tiles=(Tile(m=32, n=32, k=64, warps=4, stages=3),),
)
"""Of weights that are multiplied as they are, without tensor cores: routers, a thousandth of a model."""


def linear_dense(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """x [T, K], w [N, K], bias [N]?, residual [T, N]?, out_features, multiplier -> [T, N]. Rows of x and residual may lie apart."""
    x, w, bias, residual, _, multiplier = arguments
    linear = Linear(x=x, w=w, bias=bias, residual=residual, multiplier=multiplier, out=out, in_features=x.shape[1])
    return linear_launches(FLOAT32 if w.dtype == "float32" else FAMILY, linear, context)


EMITTERS: dict[str, Emit] = {"linear_rows_dense": linear_dense, "logits_rows_dense": linear_dense}
