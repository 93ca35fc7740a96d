"""Rows of the embedding table by token: a gather, bound by its latency."""

from typing import Any

import triton
import triton.language as tl

from .context import Context, Emit
from .launch import Launch, Tensor, cdiv
from .linear_quantized import format_constants
from .packed_rows import ROW_FORMATS

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
    BITS: tl.constexpr, ZERO: tl.constexpr, HAS_MIN: tl.constexpr, SCALES_AT: tl.constexpr, MINS_AT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As embedding_kernel, from a packed weight (see formats.py)."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < dim
    token = tl.minimum(tl.maximum(tl.load(tokens + row), 0), vocabulary - 1).to(tl.int64)
    w += token * w_stride
    if BITS == 4:
        pairs = tl.load(w + k // 32 * 16 + k % 16, mask=inside, other=0)
        values = (pairs >> (k % 32 // 16 * 4).to(tl.uint8) & 15).to(tl.float32) - ZERO
    else:
        values = tl.load(w + k, mask=inside, other=0).to(tl.int8, bitcast=True).to(tl.float32)
    numbers = tl.pointer_type(tl.float16)
    values *= tl.load((w + SCALES_AT).to(numbers) + k // 32, mask=inside, other=0.0).to(tl.float32)
    if HAS_MIN:
        values += tl.load((w + MINS_AT).to(numbers) + k // 32, mask=inside, other=0.0).to(tl.float32)
    if MULTIPLIER != 1.0:
        values = values * MULTIPLIER
    tl.store(out + row * out_stride + k, values.to(out.dtype.element_ty), mask=inside)


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
