"""Activations to FP8 rows (see fp8.py): as they are, or fresh from RMSNorm or SiLU-mul, whose bfloat16 result is then never stored.

One program per row, which stays in registers until its largest elements are known; where the scale
is given and no norm is taken, parts of a row do not wait for each other and are programs of their own.
Bound by memory; at the few rows of a decode step by the latency of one launch.
"""

from typing import Any

import triton
import triton.language as tl

from .launch import Context, Emit, Launch, Tensor, cdiv
from .packed_rows import FP8_GROUP, FP8_STATIC
from .rows import warps_for

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
def quantize_fp8_kernel(
    x, weight, scale, out, features, x_stride, out_stride, EPS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row [features]; over its root mean square and times `weight` [features], where that is given. scale: see store_scaled_fp8."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    values = tl.load(x + row * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    if weight is not None:
        weights = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
        values = values * tl.rsqrt(tl.sum(values * values, 0) / features + EPS) * weights
    if scale is not None:
        store_scaled_fp8(values, k, out + row * out_stride, features, scale)
    else:
        store_fp8(values, out + row * out_stride, features, GROUP, BLOCK)


@triton.jit
def silu_mul_quantize_fp8_kernel(
    gate, up, scale, out, features, gate_stride, up_stride, out_stride, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of gate * sigmoid(gate) * up. scale: see store_scaled_fp8."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    g = tl.load(gate + row * gate_stride + k, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + k, mask=inside, other=0.0).to(tl.float32)
    values = g / (1 + tl.exp(-g)) * u
    if scale is not None:
        store_scaled_fp8(values, k, out + row * out_stride, features, scale)
    else:
        store_fp8(values, out + row * out_stride, features, GROUP, BLOCK)


def _row_launch(
    function: Any, format: str, features: int, out: Tensor, arguments: dict[str, Any], constants: dict[str, Any], *, whole: bool
) -> Launch:
    """whole: whether a row must be one program's."""
    block = triton.next_power_of_2(features)
    block = block if whole or format != FP8_STATIC else min(block, _PART)
    return Launch(
        function=function,
        grid=(out.shape[0], cdiv(features, block), 1),
        arguments={**arguments, "out": out, "features": features, "out_stride": out.strides[0]},
        constants={**constants, "GROUP": FP8_GROUP if format == "fp8_block" else 0, "BLOCK": block},
        num_warps=warps_for(block),
    )


def _given(scale: list[Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scale, which only fp8_tensor has, as argument or constant of a kernel."""
    return ({"scale": scale[0]}, {}) if scale else ({}, {"scale": None})


def quantize(format: str) -> Emit:
    """The emitter of x [T, K], of fp8_tensor also scale [1] -> uint8 [T, row_bytes]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        x, *scale = arguments
        given, constants = _given(scale)
        given |= {"x": x, "x_stride": x.strides[0]}
        constants |= {"weight": None, "EPS": 0.0}
        return [_row_launch(quantize_fp8_kernel, format, x.shape[1], out, given, constants, whole=False)]

    return emit


def rms_norm_quantize(format: str) -> Emit:
    """The emitter of x [T, K], weight [K], eps, of fp8_tensor also scale [1] -> uint8 [T, row_bytes]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        x, weight, eps, *scale = arguments
        given, constants = _given(scale)
        given |= {"x": x, "x_stride": x.strides[0], "weight": weight}
        constants |= {"EPS": float(eps)}
        return [_row_launch(quantize_fp8_kernel, format, x.shape[1], out, given, constants, whole=True)]

    return emit


def silu_mul_quantize(format: str) -> Emit:
    """The emitter of gate and up [T, F], of fp8_tensor also scale [1] -> uint8 [T, row_bytes]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        gate, up, *scale = arguments
        given, constants = _given(scale)
        given |= {"gate": gate, "gate_stride": gate.strides[0], "up": up, "up_stride": up.strides[0]}
        return [_row_launch(silu_mul_quantize_fp8_kernel, format, gate.shape[1], out, given, constants, whole=False)]

    return emit
