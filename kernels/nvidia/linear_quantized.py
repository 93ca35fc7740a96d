"""Weight-only quantized linear: out [M, N] = x [M, K] w^T + bias + residual, w in units of K (see formats.py).

One kernel for every format of the registry: what a format is, it knows at compile time. A unit's codes come part by part, each
the codes of a group of 32, as whole numbers in bfloat16 (see codes.py).

M <= 8 and M <= 16 (decode). The limit is reading w once, half a byte to a byte per weight; next come the
instructions that make numbers of codes. Work is cut as in linear.py, with units in the place of
slices: each is one batch of a batched tl.dot. A part's product is exact but for its float32 sum, and is then multiplied with the
part's scales; minima are multiplied with the sums of x, which are products with ones: tensor cores have time for them. Of two
scales in a group, each has a product with the other half of x zero.

More rows: tiles as in linear.py, where the 64 or 128 rows of a tile share the work of making weights: code times scale
(plus minimum) in float32, rounded to bfloat16.
"""

from typing import Any

import triton
import triton.language as tl

from ..linear.blocks import FORMATS, GROUP
from .codes import decode, ones_like
from .context import Context, Emit
from .group_numbers import groups_of_unit, minima_of, row_words, scales_of, trait, unit_words
from .launch import Launch, Tensor
from .linear_cuts import FEW_ROWS, Family, FewRows, Tile, linear_launches
from .linear_launches import Linear, finish, grouped_tile, rows_of
from .packed_rows import ROW_FORMATS, unit_groups
from .unit_weights import format_constants, load_if, load_runs, run_tiles, weights_of

_WARPS = 4
_FEW_ROWS_AHEAD = {16: 10, 32: 5, 64: 5}
"""By the rows of w that a program has, steps on their way: about 20 KB of codes, or what their memory lets be."""
_FEW_ROWS_BYTES = 110_000
"""Of shared memory: what lets two programs share a multiprocessor."""
_FEW_ROWS_REGISTERS = 168
"""What lets three programs share a multiprocessor."""
_TILE_K = 128
"""Of K per step, at least."""
_TILE_BYTES = 190_000
"""Of shared memory for what is on its way to a tile of eight warps: weights as bfloat16 need some, too."""


@triton.jit
def few_rows_quantized(
    x, tokens, w, out, bias, residual, tile, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_AT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """All of out[:, tile of BLOCK_N], for up to BLOCK_M rows. A step takes UNITS units of K. tokens: see `rows_of`."""
    UNIT: tl.constexpr = groups_of_unit(FORMAT)
    HALVES: tl.constexpr = 2 if trait(FORMAT, "subscales") == 2 else 1
    m = tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row = w + tl.minimum(n, N - 1).to(tl.int64) * w_stride
    u = tl.arange(0, UNITS)
    k = tl.arange(0, 32)
    x_k = u[:, None, None] * (32 * UNIT) + k[None, :, None]
    x_tile = x + rows_of(tokens, m, rows)[None, None, :] * x_stride + x_k
    tiles = run_tiles(row[None, :, None], u[:, None, None], k[None, None, :], HIGH_AT, FORMAT)
    exists = (m < rows)[None, None, :]
    sums = tl.zeros((UNITS, BLOCK_N, BLOCK_M), tl.float32)
    units = tl.cdiv(K, 32 * UNIT)
    head = row_words(row[None, :], FORMAT, NUMBERS_AT)
    following = unit_words(row[None, :], tl.minimum(u, units - 1)[:, None], FORMAT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT)
    for done in range(0, units, UNITS):
        # Triton prefetches what goes into a product; these do not, and are loaded one step ahead here.
        words = head + following
        ahead = tl.minimum(done + UNITS + u, units - 1)[:, None]
        following = unit_words(row[None, :], ahead, FORMAT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT)
        runs = ()
        for part in tl.static_range(UNIT):
            runs = load_runs(runs, tiles, done, (u < units - done)[:, None, None], part, FORMAT, EVEN)
            weights = decode(runs, words, part, FORMAT)
            begin = (done * UNIT + part) * 32
            there = exists & (EVEN | (x_k < K - begin))
            for half in tl.static_range(HALVES):
                a = tl.load(x_tile + begin, mask=there & ((HALVES == 1) | (k // 16 == half)[None, :, None]), other=0.0)
                sums += tl.dot(weights, a) * scales_of(words, part, half, FORMAT)[:, :, None]
                if trait(FORMAT, "has_min"):
                    sums += tl.dot(ones_like(runs[0]), a) * minima_of(words, part, half, FORMAT)[:, :, None]
    finish(tl.trans(tl.sum(sums, 0)), out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@triton.jit
def few_rows_quantized_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_AT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A program per tile of BLOCK_N."""
    few_rows_quantized(
        x, None, w, out, bias, residual, tl.program_id(0), rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER,
        FORMAT, HIGH_AT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT, EVEN, BLOCK_M, BLOCK_N, UNITS,
    )  # fmt: skip


@triton.jit
def one_tile_quantized(
    x, tokens, w, out, bias, residual, tile_m, tile_n, begin, end, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
    MULTIPLIER: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_AT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr,
    EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As one_tile of linear.py; a step of K takes as many products as a unit has parts."""
    UNIT: tl.constexpr = groups_of_unit(FORMAT)
    UNITS: tl.constexpr = BLOCK_K // (32 * UNIT)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = w + tl.minimum(n, N - 1).to(tl.int64) * w_stride
    u = tl.arange(0, UNITS)
    k = tl.arange(0, 32)
    i = tl.arange(0, UNITS * 32)
    x_k = i // 32 * (32 * UNIT) + i % 32
    x_tile = x + rows_of(tokens, tl.minimum(m, rows - 1), rows).to(tl.int64)[:, None] * x_stride + x_k[None, :]
    tiles = run_tiles(row[:, None, None], u[None, :, None], k[None, None, :], HIGH_AT, FORMAT)
    units = tl.cdiv(K, 32 * UNIT)
    head = row_words(row[:, None], FORMAT, NUMBERS_AT)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(begin, end, BLOCK_K):
        first = done // (32 * UNIT)
        inside = tl.minimum(first + u, units - 1)[None, :]
        words = head + unit_words(row[:, None], inside, FORMAT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT)
        runs = ()
        for part in tl.static_range(UNIT):
            runs = load_runs(runs, tiles, first, (u < units - first)[None, :, None], part, FORMAT, EVEN_K)
            weights = tl.trans(tl.reshape(weights_of(runs, words, k, part, FORMAT).to(tl.bfloat16), (BLOCK_N, UNITS * 32)))
            a = load_if(x_tile + (done + part * 32), x_k[None, :] < K - done - part * 32, EVEN_K)
            sums = tl.dot(a, weights, sums)
    finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@triton.jit
def tile_quantized_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_AT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr,
    SPLIT_K: tl.constexpr, PARTIAL: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As tile_kernel of linear.py."""
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    begin = tl.program_id(1) * SPLIT_K
    end = tl.minimum(begin + SPLIT_K, K) if PARTIAL else K
    if PARTIAL:
        out += tl.program_id(1).to(tl.int64) * rows * N
    one_tile_quantized(
        x, None, w, out, bias, residual, tile_m, tile_n, begin, end, rows, N, K, x_stride, w_stride, out_stride, residual_stride,
        MULTIPLIER, FORMAT, HIGH_AT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


def few_cuts(format: str) -> tuple[FewRows, ...]:
    """For each number of rows and of w's rows per program. k: units of K per step, one for each warp."""
    return tuple(_few_cut(format, m, n) for m in (8, FEW_ROWS) for n in _FEW_ROWS_AHEAD)


def _few_cut(format: str, m: int, n: int) -> FewRows:
    weights = _WARPS * unit_groups(format) * GROUP
    step = weights * (n * FORMATS[format].bits // 8 + 2 * m * max(1, FORMATS[format].subscales))
    stages = 1 + max(2, min(_FEW_ROWS_AHEAD[n], _FEW_ROWS_BYTES // step))
    return FewRows(m=m, n=n, k=_WARPS, stages=stages, max_registers=None if n == 64 else _FEW_ROWS_REGISTERS)


def tile_of(format: str, m: int, n: int, warps: int) -> Tile:
    """A tile whose steps are of whole units."""
    k = max(_TILE_K, GROUP * unit_groups(format))
    step = k * (2 * m + n * FORMATS[format].bits // 8)
    return Tile(m=m, n=n, k=k, warps=warps, stages=max(2, min(4, _TILE_BYTES * warps // 8 // step)))


def family(format: str, in_features: int) -> Family:
    """The kernels of a format, for rows of that many features."""
    unit = GROUP * unit_groups(format)
    return Family(
        name=format,
        few_rows=few_rows_quantized_kernel,
        few=few_cuts(format),
        few_constants=lambda in_features, cut: {"EVEN": in_features % (unit * cut.k) == 0, "BLOCK_M": cut.m, "UNITS": cut.k},
        tile=tile_quantized_kernel,
        tiles=(tile_of(format, 64, 64, 4), tile_of(format, 128, 128, 8)),
        more_tiles=(tile_of(format, 64, 128, 4),),
        constants=format_constants(format, in_features),
    )


def linear_quantized(format: str) -> Emit:
    """The emitter of x [T, K], w uint8 [N, row_bytes], bias [N]?, residual [T, N]?, out_features, multiplier -> [T, N]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        x, w, bias, residual, _, multiplier = arguments
        linear = Linear(x=x, w=w, bias=bias, residual=residual, multiplier=multiplier, out=out, in_features=x.shape[1])
        return linear_launches(family(format, linear.in_features), linear, context)

    return emit


EMITTERS: dict[str, Emit] = {
    f"{result}_rows_{format}": linear_quantized(format) for result in ("linear", "logits") for format in ROW_FORMATS
}
