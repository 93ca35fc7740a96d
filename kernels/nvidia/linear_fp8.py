"""FP8 linear: out [M, N] = x [M, K] w^T + bias + residual, x and w rows of FP8 numbers with their scales (see fp8.py).

Cut as linear.py cuts dense linears; half the bytes to read in decode, and twice the operations per
second (about 1,580 TFLOP/s) in prefill. wgmma keeps only some 14 bits of a sum of FP8 products, so
tiles add up every 128 of K in float32 registers; few rows are multiplied as float16, exactly, with
float32 sums. The scales of fp8_block are applied to every 128 of K, those of fp8_channel at the end.
"""

from typing import Any

import triton
import triton.language as tl

from .context import Context, Emit
from .launch import Launch, Tensor
from .linear_cuts import Family, FewRows, Tile, linear_launches
from .linear_launches import Linear, finish, grouped_tile, rows_of
from .packed_rows import FP8_LAYOUTS, fp8_in_features

_SLICES = 4
_STEP = 128
"""Of K per slice or tile and step: what shares a scale in fp8_block."""
FEW = (
    # Stages that let two programs share a multiprocessor.
    FewRows(n=16, k=_STEP, stages=6),
    FewRows(n=32, k=_STEP, stages=5),
    FewRows(n=64, k=_STEP, stages=3),
    FewRows(n=32, k=_STEP, stages=3),
)
"""k: of K per slice and step."""
SMALL = Tile(m=64, n=64, k=_STEP, warps=4, stages=4)
LARGE = {
    "fp8_channel": Tile(m=128, n=128, k=_STEP, warps=8, stages=4),
    # Products and sums are apart here, which doubles the registers: two of these share a multiprocessor.
    "fp8_block": Tile(m=64, n=128, k=_STEP, warps=4, stages=3),
}
MORE = {
    "fp8_channel": (Tile(m=64, n=128, k=_STEP, warps=4, stages=4), Tile(m=128, n=128, k=_STEP, warps=8, stages=3)),
    "fp8_block": (Tile(m=64, n=128, k=_STEP, warps=8, stages=3),),
}


@triton.jit
def row_scales(base, row, features, number):
    """Scale `number` of the rows that begin at `row` bytes from `base`."""
    return tl.load((base + features).to(tl.pointer_type(tl.float32)) + row // 4 + number)


@triton.jit
def few_rows_fp8(
    x, tokens, w, out, bias, residual, tile, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    BLOCKWISE: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """As few_rows of linear.py."""
    m = tl.arange(0, 16)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    s = tl.arange(0, SLICES)
    k = s[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    x_row = rows_of(tokens, tl.minimum(m, rows - 1), rows) * x_stride
    w_row = tl.minimum(n, N - 1).to(tl.int64) * w_stride
    x_tile = x.to(tl.pointer_type(tl.float8e4nv)) + x_row[None, :, None] + k[:, None, :]
    w_tile = w.to(tl.pointer_type(tl.float8e4nv)) + w_row[None, None, :] + k[:, :, None]
    exists = (m < rows)[None, :, None]
    sums = tl.zeros((SLICES, 16, BLOCK_N), tl.float32)
    # Triton prefetches what goes into a product; scales do not, and are loaded one step ahead here.
    groups = K // BLOCK_K
    x_scales = row_scales(x, x_row[None, :, None], K, tl.minimum(s, groups - 1)[:, None, None] if BLOCKWISE else 0)
    w_scales = row_scales(w, w_row[None, None, :], K, tl.minimum(s, groups - 1)[:, None, None] if BLOCKWISE else 0)
    for done in range(0, K, SLICES * BLOCK_K):
        if EVEN_K:
            a = tl.load(x_tile + done, mask=exists, other=0.0)
            b = tl.load(w_tile + done)
        else:
            a = tl.load(x_tile + done, mask=exists & (k[:, None, :] < K - done), other=0.0)
            b = tl.load(w_tile + done, mask=k[:, :, None] < K - done, other=0.0)
        if BLOCKWISE:
            following = tl.minimum(done // BLOCK_K + SLICES + s, groups - 1)[:, None, None]
            next_x_scales = row_scales(x, x_row[None, :, None], K, following)
            next_w_scales = row_scales(w, w_row[None, None, :], K, following)
            sums += tl.dot(a, b) * x_scales * w_scales
            x_scales = next_x_scales
            w_scales = next_w_scales
        else:
            sums = tl.dot(a, b, sums)
    if not BLOCKWISE:
        sums = sums * x_scales * w_scales
    finish(tl.sum(sums, 0), out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@triton.jit
def few_rows_fp8_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    BLOCKWISE: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """A program per tile of BLOCK_N."""
    few_rows_fp8(
        x, None, w, out, bias, residual, tl.program_id(0), rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER,
        BLOCKWISE, EVEN_K, BLOCK_N, BLOCK_K, SLICES,
    )  # fmt: skip


@triton.jit
def one_tile_fp8(
    x, tokens, w, out, bias, residual, tile_m, tile_n, begin, end, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
    MULTIPLIER: tl.constexpr, BLOCKWISE: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As one_tile of linear.py."""
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_row = rows_of(tokens, tl.minimum(m, rows - 1), rows).to(tl.int64) * x_stride
    w_row = tl.minimum(n, N - 1).to(tl.int64) * w_stride
    x_tile = x.to(tl.pointer_type(tl.float8e4nv)) + x_row[:, None] + k[None, :]
    w_tile = w.to(tl.pointer_type(tl.float8e4nv)) + w_row[None, :] + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    x_scales = row_scales(x, x_row, K, begin // BLOCK_K if BLOCKWISE else 0)
    w_scales = row_scales(w, w_row, K, begin // BLOCK_K if BLOCKWISE else 0)
    for done in range(begin, end, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_tile + done)
            b = tl.load(w_tile + done)
        else:
            a = tl.load(x_tile + done, mask=k[None, :] < K - done, other=0.0)
            b = tl.load(w_tile + done, mask=k[:, None] < K - done, other=0.0)
        if BLOCKWISE:
            following = tl.minimum(done + BLOCK_K, K - BLOCK_K) // BLOCK_K
            next_x_scales = row_scales(x, x_row, K, following)
            next_w_scales = row_scales(w, w_row, K, following)
            sums += tl.dot(a, b) * (x_scales[:, None] * w_scales[None, :])
            x_scales = next_x_scales
            w_scales = next_w_scales
        else:
            sums = tl.dot(a, b, sums, max_num_imprecise_acc=BLOCK_K)
    if not BLOCKWISE:
        sums = sums * (x_scales[:, None] * w_scales[None, :])
    finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@triton.jit
def tile_fp8_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
    MULTIPLIER: tl.constexpr, BLOCKWISE: tl.constexpr,
    SPLIT_K: tl.constexpr, PARTIAL: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As tile_kernel of linear.py."""
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    begin = tl.program_id(1) * SPLIT_K
    end = tl.minimum(begin + SPLIT_K, K) if PARTIAL else K
    if PARTIAL:
        out += tl.program_id(1).to(tl.int64) * rows * N
    one_tile_fp8(
        x, None, w, out, bias, residual, tile_m, tile_n, begin, end, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
        MULTIPLIER, BLOCKWISE, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


def family(format: str) -> Family:
    """The kernels of a format."""
    return Family(
        name=format,
        few_rows=few_rows_fp8_kernel,
        few=FEW,
        few_constants=lambda in_features, cut: {"EVEN_K": in_features % (_SLICES * cut.k) == 0, "BLOCK_K": cut.k, "SLICES": _SLICES},
        tile=tile_fp8_kernel,
        tiles=(SMALL, LARGE[format]),
        more_tiles=MORE[format],
        constants={"BLOCKWISE": format == "fp8_block"},
    )


def linear_fp8(format: str) -> Emit:
    """The emitter of x uint8 [T, row_bytes], w uint8 [N, row_bytes], bias [N]?, residual [T, N]?, out_features, multiplier -> [T, N]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        x, w, bias, residual, _, multiplier = arguments
        in_features = fp8_in_features(format, w.shape[1])
        linear = Linear(x=x, w=w, bias=bias, residual=residual, multiplier=multiplier, out=out, in_features=in_features)
        return linear_launches(family(format), linear, context)

    return emit


EMITTERS: dict[str, Emit] = {f"{result}_rows_{layout}": linear_fp8(layout) for result in ("linear", "logits") for layout in FP8_LAYOUTS}
