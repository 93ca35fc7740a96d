"""How linears of any kind of weight are cut into launches: their operands, their tiles, and what ends each kernel."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import sympy
import triton
import triton.language as tl

from .launch import Condition, Context, Launch, Size, Tensor, cdiv

FEW_ROWS = 16
"""Up to so many rows M, kernels pad to this and take all of K."""


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
def grouped_tile(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Which tile (m, n) comes as number `tile`: GROUP rows of tiles at a time, column by column."""
    in_group = GROUP * tiles_n
    first_m = tile // in_group * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    return first_m + tile % in_group % height, tile % in_group // height


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
