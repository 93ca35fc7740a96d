"""Weight-only quantized linear: out [M, N] = x [M, K] w^T + bias + residual, w in groups of 32 (see formats.py).

Weights are made in registers, rounded to bfloat16 and multiplied by tl.dot. Nibbles are not put in
order: the low and the high halves of a group meet their own halves of x.

M <= 16 (decode). The limit is reading w once, half a byte to a byte per weight; next come the
instructions that make numbers of quants. Work is cut as in linear.py, with groups in the place of
slices: each is one batch of a batched tl.dot. More rows: tiles as in linear.py, where the 64 or
128 rows of a tile share the work of making weights.
"""

from typing import Any

import triton
import triton.language as tl

from ..linear.blocks import FORMATS, GROUP
from .context import Context, Emit
from .formats import scales_offset
from .launch import Launch, Tensor
from .linear import FLAT, SMALL, SQUARE
from .linear_cuts import Family, FewRows, linear_launches
from .linear_launches import Linear, finish, grouped_tile
from .packed_rows import ROW_FORMATS

_STEP_BYTES = 4096
"""Quants that a program of `few_rows_quantized_kernel` takes per step: several steps are on their way, and registers hold them."""
_FEW_ROWS_STAGES = 6


@triton.jit
def load_if(pointers, mask, EVEN: tl.constexpr):
    """What lies there, or zero where the mask does not hold. EVEN: it holds everywhere."""
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=mask, other=0)


@triton.jit
def group_numbers(w, row, at, group, groups, EVEN: tl.constexpr):
    """The float16 numbers, one per group, that begin `at` bytes into each row: [rows, groups], zero from `groups` on."""
    numbers = (w + at).to(tl.pointer_type(tl.float16)) + row[:, None] // 2 + group[None, :]
    return load_if(numbers, (group < groups)[None, :], EVEN).to(tl.float32)


@triton.jit
def per_group(numbers):
    """[rows, groups] -> [groups, rows, 1]"""
    return tl.trans(numbers)[:, :, None]


@triton.jit
def weights_of(quants, scales, mins, ZERO: tl.constexpr, HAS_MIN: tl.constexpr):
    """int8 quants with scales and mins of their groups -> bfloat16 weights."""
    values = (quants.to(tl.float32) - ZERO) * scales
    if HAS_MIN:
        values += mins
    return values.to(tl.bfloat16)


@triton.jit
def few_rows_quantized_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    BITS: tl.constexpr, ZERO: tl.constexpr, HAS_MIN: tl.constexpr, SCALES_AT: tl.constexpr, MINS_AT: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_N: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """All of out[:, tile of BLOCK_N], for up to 16 rows. A step takes GROUPS groups of K."""
    BYTES: tl.constexpr = 4 * BITS
    m = tl.arange(0, 16)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(n, N - 1).to(tl.int64) * w_stride
    g = tl.arange(0, GROUPS)
    k = tl.arange(0, BYTES)
    x_k = g[:, None, None] * 32 + k[None, :, None]
    x_tile = x + m[None, None, :] * x_stride + x_k
    w_tile = w + row[None, :, None] + g[:, None, None] * BYTES + k[None, None, :]
    exists = (m < rows)[None, None, :]
    sums = tl.zeros((GROUPS, BLOCK_N, 16), tl.float32)
    groups = tl.cdiv(K, 32)
    for done in range(0, groups, GROUPS):
        scales = per_group(group_numbers(w, row, SCALES_AT, done + g, groups, EVEN))
        mins = per_group(group_numbers(w, row, MINS_AT, done + g, groups, EVEN)) if HAS_MIN else scales
        quants = load_if(w_tile + done * BYTES, (g < groups - done)[:, None, None], EVEN)
        a = tl.load(x_tile + done * 32, mask=exists & (EVEN | (x_k < K - done * 32)), other=0.0)
        if BITS == 4:
            high = tl.load(x_tile + done * 32 + 16, mask=exists & (EVEN | (x_k + 16 < K - done * 32)), other=0.0)
            sums = tl.dot(weights_of((quants & 15).to(tl.int8), scales, mins, ZERO, HAS_MIN), a, sums)
            sums = tl.dot(weights_of((quants >> 4).to(tl.int8), scales, mins, ZERO, HAS_MIN), high, sums)
        else:
            sums = tl.dot(weights_of(quants.to(tl.int8, bitcast=True), scales, mins, ZERO, HAS_MIN), a, sums)
    finish(tl.trans(tl.sum(sums, 0)), out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


@triton.jit
def as_operand(weights, BLOCK_N: tl.constexpr, COUNT: tl.constexpr):
    """[BLOCK_N, groups, ..], COUNT of a row in all -> [COUNT, BLOCK_N]"""
    return tl.trans(tl.reshape(weights, (BLOCK_N, COUNT)))


@triton.jit
def tile_quantized_kernel(
    x, w, out, bias, residual, rows, N, K, x_stride, w_stride, out_stride, residual_stride, MULTIPLIER: tl.constexpr,
    BITS: tl.constexpr, ZERO: tl.constexpr, HAS_MIN: tl.constexpr, SCALES_AT: tl.constexpr, MINS_AT: tl.constexpr,
    SPLIT_K: tl.constexpr, PARTIAL: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As tile_kernel of linear.py."""
    BYTES: tl.constexpr = 4 * BITS
    GROUPS: tl.constexpr = BLOCK_K // 32
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(n, N - 1).to(tl.int64) * w_stride
    g = tl.arange(0, GROUPS)
    i = tl.arange(0, GROUPS * BYTES)
    k = i // BYTES * 32 + i % BYTES
    x_tile = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    w_tile = w + row[:, None, None] + g[None, :, None] * BYTES + tl.arange(0, BYTES)[None, None, :]
    begin = tl.program_id(1) * SPLIT_K
    end = tl.minimum(begin + SPLIT_K, K) if PARTIAL else K
    groups = tl.cdiv(K, 32)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(begin, end, BLOCK_K):
        first = done // 32
        scales = group_numbers(w, row, SCALES_AT, first + g, groups, EVEN_K)[:, :, None]
        mins = group_numbers(w, row, MINS_AT, first + g, groups, EVEN_K)[:, :, None] if HAS_MIN else scales
        quants = load_if(w_tile + first * BYTES, (g < groups - first)[None, :, None], EVEN_K)
        a = load_if(x_tile + done, k[None, :] < K - done, EVEN_K)
        if BITS == 4:
            high = load_if(x_tile + done + 16, k[None, :] + 16 < K - done, EVEN_K)
            low_weights = weights_of((quants & 15).to(tl.int8), scales, mins, ZERO, HAS_MIN)
            high_weights = weights_of((quants >> 4).to(tl.int8), scales, mins, ZERO, HAS_MIN)
            sums = tl.dot(a, as_operand(low_weights, BLOCK_N, GROUPS * BYTES), sums)
            sums = tl.dot(high, as_operand(high_weights, BLOCK_N, GROUPS * BYTES), sums)
        else:
            weights = weights_of(quants.to(tl.int8, bitcast=True), scales, mins, ZERO, HAS_MIN)
            sums = tl.dot(a, as_operand(weights, BLOCK_N, GROUPS * BYTES), sums)
    if PARTIAL:
        out += tl.program_id(1).to(tl.int64) * rows * N
    finish(sums, out, bias, residual, out_stride, residual_stride, m, n, rows, N, MULTIPLIER)


def format_constants(format: str, in_features: int) -> dict[str, Any]:
    """What kernels must know of a format and of where a row's parts begin."""
    spec = FORMATS[format]
    scales_at, size = scales_offset(format, in_features)
    return {"BITS": spec.bits, "ZERO": spec.zero, "HAS_MIN": spec.has_min, "SCALES_AT": scales_at, "MINS_AT": scales_at + size}


def few_cuts(format: str) -> tuple[FewRows, ...]:
    """For each number of w's rows per program, steps of _STEP_BYTES. k: groups of K per step, one for each of 4 warps at least."""
    groups = {n: max(4, _STEP_BYTES // (FORMATS[format].code_bytes * n)) for n in (16, 32, 64)}
    cuts = [FewRows(n=n, k=k, stages=_FEW_ROWS_STAGES) for n, k in groups.items()]
    return (*cuts, FewRows(n=16, k=max(4, groups[16] // 2), stages=_FEW_ROWS_STAGES), FewRows(n=32, k=groups[32], stages=4))


def family(format: str, in_features: int) -> Family:
    """The kernels of a format, for rows of that many features."""
    return Family(
        name=format,
        few_rows=few_rows_quantized_kernel,
        few=few_cuts(format),
        few_constants=lambda linear, cut: {"EVEN": linear.in_features % (GROUP * cut.k) == 0, "GROUPS": cut.k},
        tile=tile_quantized_kernel,
        tiles=(SMALL, SQUARE),
        more_tiles=(FLAT,),
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
