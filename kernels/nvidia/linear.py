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

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import sympy
import triton
import triton.language as tl

from .launch import Condition, Context, Launch, Size, Tensor, cdiv

FEW_ROWS = 16
_SLICES = 4
"""Slices of K in `few_rows_kernel`, one per warp."""


@triton.jit
def finish(values, out, bias, residual, out_stride, residual_stride, m, n, rows, N):
    """values [.., ..] float32 of rows m and features n: add bias and residual, round, store what exists."""
    inside = (m < rows)[:, None] & (n < N)[None, :]
    if bias is not None:
        values += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        at = m.to(tl.int64)[:, None] * residual_stride + n[None, :]
        values += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m.to(tl.int64)[:, None] * out_stride + n[None, :], values.to(out.dtype.element_ty), mask=inside)


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
def grouped_tile(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Which tile (m, n) comes as number `tile`: GROUP rows of tiles at a time, column by column."""
    in_group = GROUP * tiles_n
    first_m = tile // in_group * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    return first_m + tile % in_group % height, tile % in_group // height


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


@triton.jit
def add_splits_kernel(partial, out, bias, residual, splits, rows, N, out_stride, residual_stride, BLOCK: tl.constexpr):
    """partial [splits, rows, N] float32, added in order, plus bias and residual: BLOCK features of one row per program."""
    m = tl.program_id(0) + tl.arange(0, 1)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((1, BLOCK), tl.float32)
    for split in range(splits):
        at = (m.to(tl.int64) + split * rows)[:, None] * N + n[None, :]
        sums += tl.load(partial + at, mask=(n < N)[None, :], other=0.0)
    finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How tile_kernel cuts the work: out in `m` x `n`, K in steps of `k`."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


SMALL = Tile(m=64, n=64, k=128, warps=4, stages=3)
SQUARE = Tile(m=128, n=128, k=64, warps=8, stages=4)
WIDE = Tile(m=128, n=256, k=64, warps=8, stages=4)


def block_n_of_few_rows(features: int, multiprocessors: int) -> int:
    """Rows of w per program: as many as still leave nine in ten multiprocessors one."""
    return next((block for block in (64, 32) if 10 * cdiv(features, block) >= 9 * multiprocessors), 16)


def rows_that_fill(tile: Tile, features: int, multiprocessors: int) -> int:
    """The least M at which there is a tile for every multiprocessor."""
    return tile.m * (int(cdiv(multiprocessors, cdiv(features, tile.n))) - 1) + 1


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The operands of one linear, as launches name them."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    residual: Tensor | None
    out: Tensor
    in_features: int

    @property
    def rows(self) -> Size:
        return self.x.shape[0]

    @property
    def out_features(self) -> int:
        return int(self.out.shape[1])

    def launch(self, function: Any, grid: tuple[Size, Size, Size], constants: dict[str, Any], **how: Any) -> Launch:
        """A launch of few_rows_kernel or tile_kernel, or of a kernel with the same parameters."""
        sizes = {
            "rows": self.rows,
            "N": self.out_features,
            "K": self.in_features,
            "x_stride": self.x.strides[0],
            "w_stride": self.w.strides[0],
        }
        return Launch(
            function=function,
            grid=grid,
            arguments={"x": self.x, "w": self.w, **sizes, **self._result_arguments()},
            constants={**self._result_constants(), **constants},
            **how,
        )

    def add_splits(self, partial: Tensor, **how: Any) -> Launch:
        """The launch that adds what a PARTIAL one left in `partial` [splits, M, N]."""
        block = 1024
        return Launch(
            function=add_splits_kernel,
            grid=(self.rows, cdiv(self.out_features, block), 1),
            arguments={
                "partial": partial,
                "splits": partial.shape[0],
                "rows": self.rows,
                "N": self.out_features,
                **self._result_arguments(),
            },
            constants={**self._result_constants(), "BLOCK": block},
            **how,
        )

    def _result_arguments(self) -> dict[str, Any]:
        added = {name: tensor for name, tensor in (("bias", self.bias), ("residual", self.residual)) if tensor is not None}
        stride = 0 if self.residual is None else self.residual.strides[0]
        return {"out": self.out, "out_stride": self.out.strides[0], "residual_stride": stride, **added}

    def _result_constants(self) -> dict[str, None]:
        return {name: None for name, tensor in (("bias", self.bias), ("residual", self.residual)) if tensor is None}


def few_rows(linear: Linear, multiprocessors: int) -> Launch:
    """For M <= 16."""
    block_n = block_n_of_few_rows(linear.out_features, multiprocessors)
    block_k = 64 if block_n == 64 else 128
    return linear.launch(
        few_rows_kernel,
        (cdiv(linear.out_features, block_n), 1, 1),
        {"EVEN_K": linear.in_features % (_SLICES * block_k) == 0, "BLOCK_N": block_n, "BLOCK_K": block_k, "SLICES": _SLICES},
        num_stages=4,
        when=(Condition(value=linear.rows, maximum=FEW_ROWS),),
    )


def whole_tiles(function: Any, linear: Linear, tile: Tile, first: int, last: int | None, constants: dict[str, Any] | None = None) -> Launch:
    """One launch of `function` in tiles of all K, for first <= M <= last."""
    return linear.launch(
        function,
        (cdiv(linear.rows, tile.m) * cdiv(linear.out_features, tile.n), 1, 1),
        {"SPLIT_K": 0, "PARTIAL": False, **_tile_constants(linear, tile), **(constants or {})},
        num_warps=tile.warps,
        num_stages=tile.stages,
        when=(Condition(value=linear.rows, minimum=first, maximum=last),),
    )


def split_tiles(
    function: Any, linear: Linear, tile: Tile, first: int, splits: int, context: Context, constants: dict[str, Any] | None = None
) -> list[Launch]:
    """For first <= M <= tile.m: K cut into `splits`, and the launch that adds them."""
    split_k = cdiv(cdiv(linear.in_features, tile.k), splits) * tile.k
    splits = cdiv(linear.in_features, split_k)
    partial = context.allocate("float32", (splits, sympy.Min(linear.rows, tile.m), linear.out_features))
    to_partial = replace(linear, bias=None, residual=None, out=replace(partial, shape=partial.shape[1:], strides=partial.strides[1:]))
    when = (Condition(value=linear.rows, minimum=first, maximum=tile.m),)
    cut = to_partial.launch(
        function,
        (cdiv(linear.out_features, tile.n), splits, 1),
        {"SPLIT_K": split_k, "PARTIAL": True, **_tile_constants(linear, tile), **(constants or {})},
        num_warps=tile.warps,
        num_stages=tile.stages,
        when=when,
    )
    return [cut, linear.add_splits(partial, when=when)]


def _tile_constants(linear: Linear, tile: Tile) -> dict[str, Any]:
    return {"EVEN_K": linear.in_features % tile.k == 0, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}


def many_rows(
    function: Any, linear: Linear, context: Context, *, tiles: tuple[Tile, ...], constants: dict[str, Any] | None = None
) -> list[Launch]:
    """For M > 16, with `function` as tile_kernel: every M has exactly one of these, or a pair that splits K.

    tiles: from small to large, each for the M from which on it gives every multiprocessor one.
    """
    multiprocessors, first = context.device.multiprocessors, FEW_ROWS + 1
    small = tiles[0]
    launches = []
    splits = min(round(multiprocessors / cdiv(linear.out_features, small.n)), linear.in_features // (2 * small.k))
    if splits > 1:
        launches += split_tiles(function, linear, small, first, splits, context, constants)
        first = small.m + 1
    begins = [first]
    for smaller, tile in pairwise(tiles):
        begins.append(max(begins[-1], smaller.m + 1, rows_that_fill(tile, linear.out_features, multiprocessors)))
    ends = [*(begin - 1 for begin in begins[1:]), None]
    for tile, begin, end in zip(tiles, begins, ends, strict=True):
        if end is None or begin <= end:
            launches.append(whole_tiles(function, linear, tile, begin, end, constants))
    return launches


def linear_dense(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """x [T, K], w [N, K], bias [N]?, residual [T, N]?, out_features -> [T, N]. Rows of x and residual may lie apart."""
    x, w, bias, residual, _ = arguments
    linear = Linear(x=x, w=w, bias=bias, residual=residual, out=out, in_features=x.shape[1])
    return [few_rows(linear, context.device.multiprocessors), *many_rows(tile_kernel, linear, context, tiles=(SMALL, SQUARE, WIDE))]
