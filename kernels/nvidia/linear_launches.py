"""What launches of linears of any kind of weight share: their operands, the order of their tiles, and what ends each kernel."""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from .launch import Launch, Size, Tensor, cdiv


@triton.jit
def finish(values, out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER: tl.constexpr):
    """values [.., ..] float32 of rows m and features n: add bias, multiply, add residual, round, store what exists."""
    inside = (m < rows)[:, None] & (n < N)[None, :]
    if bias is not None:
        values += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if MULTIPLIER != 1.0:
        values = values * MULTIPLIER
    if residual is not None:
        at = m.to(tl.int64)[:, None] * residual_stride + n[None, :]
        values += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m.to(tl.int64)[:, None] * out_stride + n[None, :], values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rows_of(tokens, m, rows):
    """Where in x rows m of a product are: of pairs sorted by expert, the rows of their tokens."""
    if tokens is not None:
        m = tl.load(tokens + m, mask=m < rows, other=0)
    return m


@triton.jit
def product(a, b, sums):
    """sums + a b; what only float32 holds, such as a router's weights, is multiplied in it."""
    if b.dtype == tl.float32:
        return tl.dot(a.to(tl.float32), b, sums, input_precision="ieee")
    return tl.dot(a, b.to(a.dtype), sums)


@triton.jit
def grouped_tile(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Which tile (m, n) comes as number `tile`: GROUP rows of tiles at a time, column by column."""
    in_group = GROUP * tiles_n
    first_m = tile // in_group * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    return first_m + tile % in_group % height, tile % in_group // height


@triton.jit
def add_splits_kernel(
    partial, out, bias, residual, splits, rows, N, out_stride, residual_stride, MULTIPLIER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partial [splits, rows, N] float32, added in order, then finished as any linear: BLOCK features of one row per program."""
    m = tl.program_id(0) + tl.arange(0, 1)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((1, BLOCK), tl.float32)
    for split in range(splits):
        at = (m.to(tl.int64) + split * rows)[:, None] * N + n[None, :]
        sums += tl.load(partial + at, mask=(n < N)[None, :], other=0.0)
    finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The operands of one linear, as launches name them: (x w^T + bias) * multiplier + residual."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    residual: Tensor | None
    multiplier: float
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

    def _result_constants(self) -> dict[str, Any]:
        absent = {name: None for name, tensor in (("bias", self.bias), ("residual", self.residual)) if tensor is None}
        return {**absent, "MULTIPLIER": float(self.multiplier)}
