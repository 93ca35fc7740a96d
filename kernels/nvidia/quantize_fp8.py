"""Activations to FP8 rows (see fp8.py): as they are, or fresh from a norm or an activation, whose bfloat16 result is then never stored.

One program per row, which stays in registers until its largest elements are known; where the scale
is given and no norm is taken, parts of a row do not wait for each other and are programs of their own.
Bound by memory; at the few rows of a decode step by the latency of one launch.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from ..row_operators import ROW_OPERATORS, TWINS, twin
from .activations import activated, activation_operands
from .context import Context, Emit
from .launch import Launch, Tensor, cdiv
from .norms import given, norm_operands, normalized, warps_for
from .packed_rows import FP8_FORMATS, FP8_GROUP, FP8_STATIC

_PART = 1024
"""Elements of a row per program, where rows need not be whole."""


@triton.jit
def store_fp8(values, out, features, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """values [BLOCK] float32, zero past `features`, as a row at `out` of numbers and scales. GROUP 0: one scale."""
    WIDTH: tl.constexpr = GROUP if GROUP else BLOCK
    groups = tl.reshape(values, (BLOCK // WIDTH, WIDTH))
    amax = tl.max(tl.abs(groups), 1)
    used = amax >= 7.888609052210118e-31
    divisor = tl.where(used, amax, 1.0)
    inverse = tl.where(used, tl.div_rn(tl.full(amax.shape, 448.0, tl.float32), divisor), 1.0)
    numbers = (groups * inverse[:, None]).to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    k = tl.arange(0, BLOCK)
    tl.store(out + k, tl.reshape(numbers, (BLOCK,)), mask=k < features)
    scales = tl.where(used, tl.div_rn(amax, tl.full(amax.shape, 448.0, tl.float32)), 1.0)
    g = tl.arange(0, BLOCK // WIDTH)
    tl.store((out + features).to(tl.pointer_type(tl.float32)) + g, scales, mask=g * WIDTH < features)


@triton.jit
def store_scaled_fp8(values, k, out, features, scale):
    """values [BLOCK] float32, elements `k` of a row at `out`, over the one number at `scale`."""
    given = tl.load(scale)
    scaled = values * tl.div_rn(tl.full(given.shape, 1.0, tl.float32), given)
    # Conversion alone saturates on a GPU, but not in the interpreter.
    bounded = tl.clamp(scaled, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + k, bounded.to(tl.float8e4nv).to(tl.uint8, bitcast=True), mask=k < features)
    tl.store((out + features).to(tl.pointer_type(tl.float32)), given)  # by every part of the row: the same number


@triton.jit
def store_row_fp8(values, k, out, features, scale, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Elements `k` of a row at `out`, with a given scale, or else the row's own."""
    if scale is not None:
        store_scaled_fp8(values, k, out, features, scale)
    else:
        store_fp8(values, out, features, GROUP, BLOCK)


@triton.jit
def quantize_fp8_kernel(x, scale, out, features, x_stride, out_stride, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """One row [features]. scale: see store_scaled_fp8."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + row * x_stride + k, mask=k < features, other=0.0).to(tl.float32)
    store_row_fp8(values, k, out + row * out_stride, features, scale, GROUP, BLOCK)


@triton.jit
def norm_quantize_fp8_kernel(
    x, weight, bias, residual, scale, out, features, x_stride, residual_stride, out_stride,
    EPS: tl.constexpr, CENTERED: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As norm_kernel of norms.py, quantized."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    if residual is not None:
        residual += row * residual_stride
    values = normalized(x + row * x_stride, weight, bias, residual, k, features, EPS, CENTERED)
    store_row_fp8(values, k, out + row * out_stride, features, scale, GROUP, BLOCK)


@triton.jit
def activation_quantize_fp8_kernel(
    x, up, alpha_p, alpha_n, beta, eps, scale, out, features, x_stride, up_stride, out_stride,
    FUNCTION: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As activation_kernel of activations.py, quantized: one row, or with a given scale a part of one."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    values = activated(tl.load(x + row * x_stride + k, mask=inside, other=0.0).to(tl.float32), alpha_p, alpha_n, beta, eps, FUNCTION)
    if up is not None:
        values = values * tl.load(up + row * up_stride + k, mask=inside, other=0.0).to(tl.float32)
    values = tl.where(inside, values, 0.0)
    store_row_fp8(values, k, out + row * out_stride, features, scale, GROUP, BLOCK)


def quantize(format: str) -> Emit:
    """The emitter of x [T, K], of fp8_tensor also scale [1] -> uint8 [T, row_bytes]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        x, *scale = arguments
        operands = {"x": x, "x_stride": x.strides[0]}
        return [_launch(quantize_fp8_kernel, format, x.shape[1], out, scale, operands, {}, whole=False)]

    return emit


def norm_quantize(name: str, format: str) -> Emit:
    """The emitter of a norm's twin: its arguments, of fp8_tensor also scale [1] -> uint8 [T, row_bytes]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        own, scale = _split(name, arguments)
        return [_launch(norm_quantize_fp8_kernel, format, own[0].shape[1], out, scale, *norm_operands(name, own), whole=True)]

    return emit


def activation_quantize(name: str, format: str) -> Emit:
    """The emitter of an activation's twin: its arguments, of fp8_tensor also scale [1] -> uint8 [T, row_bytes]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        own, scale = _split(name, arguments)
        operands = activation_operands(name, own)
        return [_launch(activation_quantize_fp8_kernel, format, own[0].shape[1], out, scale, *operands, whole=False)]

    return emit


def _split(name: str, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The operator's own arguments, and the scale, which only fp8_tensor has."""
    count = len(ROW_OPERATORS[name].arguments)
    return arguments[:count], arguments[count:]


def _launch(
    function: Any,
    format: str,
    features: int,
    out: Tensor,
    scale: Sequence[Tensor],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    *,
    whole: bool,
) -> Launch:
    """whole: whether a row must be one program's."""
    block = triton.next_power_of_2(features)
    block = block if whole or format != FP8_STATIC else min(block, _PART)
    there, absent = given(scale=scale[0] if scale else None)
    return Launch(
        function=function,
        grid=(out.shape[0], cdiv(features, block), 1),
        arguments={**arguments, **there, "out": out, "features": features, "out_stride": out.strides[0]},
        constants={**constants, **absent, "GROUP": FP8_GROUP if format == "fp8_block" else 0, "BLOCK": block},
        num_warps=warps_for(block),
    )


_NORMS = {"rms_norm": norm_quantize, "layer_norm": norm_quantize}

EMITTERS: dict[str, Emit] = {
    **{f"quantize_{format}": quantize(format) for format in FP8_FORMATS},
    **{
        twin(row.name, f"quantize_{format}"): _NORMS.get(row.name, activation_quantize)(row.name, format)
        for row in TWINS
        for format in FP8_FORMATS
    },
}
