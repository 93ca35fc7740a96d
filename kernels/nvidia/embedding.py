"""Rows of the embedding table by token: a gather, bound by its latency."""

from typing import Any

import triton
import triton.language as tl

from .context import Context, Emit
from .group_numbers import groups_of_unit, row_words, unit_words
from .launch import Launch, Tensor, cdiv
from .packed_rows import ROW_FORMATS
from .unit_weights import format_constants, load_runs, run_tiles, weights_of

_BLOCK = 1024


@triton.jit
def embedding_kernel(tokens, w, out, vocabulary, dim, w_stride, out_stride, MULTIPLIER: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements of one token's row per program. Ids outside the vocabulary read its first or last row."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.minimum(tl.maximum(tl.load(tokens + row), 0), vocabulary - 1).to(tl.int64)
    values = tl.load(w + token * w_stride + k, mask=k < dim, other=0.0)
    if MULTIPLIER != 1.0:
        values = values.to(tl.float32) * MULTIPLIER
    tl.store(out + row * out_stride + k, values.to(out.dtype.element_ty), mask=k < dim)


@triton.jit
def embedding_quantized_kernel(
    tokens, w, out, vocabulary, dim, w_stride, out_stride, MULTIPLIER: tl.constexpr,
    FORMAT: tl.constexpr, HIGH_AT: tl.constexpr, NUMBERS_AT: tl.constexpr, ZEROS_AT: tl.constexpr, INTEGERS_AT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """As embedding_kernel, from a packed weight (see formats.py)."""
    UNIT: tl.constexpr = groups_of_unit(FORMAT)
    UNITS: tl.constexpr = BLOCK // (32 * UNIT)
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)[:, None]
    units = tl.cdiv(dim, 32 * UNIT)
    k = tl.arange(0, 32)
    token = tl.minimum(tl.maximum(tl.load(tokens + row), 0), vocabulary - 1).to(tl.int64)
    w += token * w_stride
    words = row_words(w, FORMAT, NUMBERS_AT) + unit_words(w, tl.minimum(unit, units - 1), FORMAT, NUMBERS_AT, ZEROS_AT, INTEGERS_AT)
    tiles = run_tiles(w, unit[:, :, None], k[None, None, :], HIGH_AT, FORMAT)
    runs = ()
    for part in tl.static_range(UNIT):
        runs = load_runs(runs, tiles, 0, (unit < units)[:, :, None], part, FORMAT, False)
        values = weights_of(runs, words, k, part, FORMAT)
        if MULTIPLIER != 1.0:
            values = values * MULTIPLIER
        at = (unit * UNIT + part)[:, :, None] * 32 + k[None, None, :]
        tl.store(out + row * out_stride + at, values.to(out.dtype.element_ty), mask=at < dim)


def _gather(function: Any, constants: dict[str, Any], arguments: tuple[Any, ...], out: Tensor) -> list[Launch]:
    tokens, w, dim, multiplier = arguments
    sizes = {"vocabulary": w.shape[0], "dim": dim, "w_stride": w.strides[0], "out_stride": out.strides[0]}
    return [
        Launch(
            function=function,
            grid=(tokens.shape[0], cdiv(dim, _BLOCK), 1),
            arguments={"tokens": tokens, "w": w, "out": out, **sizes},
            constants={"MULTIPLIER": float(multiplier), "BLOCK": _BLOCK, **constants},
        )
    ]


def embedding_dense(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """tokens [T] int32, w [V, dim], dim, multiplier -> [T, dim]."""
    return _gather(embedding_kernel, {}, arguments, out)


def embedding_quantized(format: str) -> Emit:
    """The emitter of tokens [T] int32, w uint8 [V, row_bytes], dim, multiplier -> [T, dim]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        return _gather(embedding_quantized_kernel, format_constants(format, arguments[2]), arguments, out)

    return emit


EMITTERS: dict[str, Emit] = {
    "embedding_rows_dense": embedding_dense,
    **{f"embedding_rows_{format}": embedding_quantized(format) for format in ROW_FORMATS},
}
