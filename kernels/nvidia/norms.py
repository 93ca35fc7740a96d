"""RMSNorm and LayerNorm over the rows of a step, one launch each.

Every element is read and written once: bound by memory; at the few rows of a decode step by the
latency of one launch. Float32 inside, rounded once at the store.
"""

from typing import Any

import triton
import triton.language as tl

from .context import Context, Emit
from .launch import Launch, Tensor


@triton.jit
def normalized(x, weight, bias, residual, k, features, EPS: tl.constexpr, CENTERED: tl.constexpr):
    """Elements `k`, all of a row [features] at `x`, normalized; times weight, plus bias and the row at `residual`, where there are such.

    CENTERED: of x - mean(x). Float32, zero past the row's end.
    """
    inside = k < features
    values = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
    if CENTERED:
        values = tl.where(inside, values - tl.sum(values, 0) / features, 0.0)
    values = values * tl.rsqrt(tl.sum(values * values, 0) / features + EPS)
    if weight is not None:
        values = values * tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        values = values + tl.load(bias + k, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        values = values + tl.load(residual + k, mask=inside, other=0.0).to(tl.float32)
    return values


@triton.jit
def norm_kernel(
    x, weight, bias, residual, out, features, x_stride, residual_stride, out_stride,
    EPS: tl.constexpr, CENTERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row [features] per program, which stays in registers between the sum and the product."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    if residual is not None:
        residual += row * residual_stride
    values = normalized(x + row * x_stride, weight, bias, residual, k, features, EPS, CENTERED)
    tl.store(out + row * out_stride + k, values.to(out.dtype.element_ty), mask=k < features)


def warps_for(elements: int) -> int:
    """Warps for a program that holds a row of `elements`: about 16 of them per thread."""
    return int(min(16, max(1, triton.next_power_of_2(elements) // 512)))


def given(**operands: Tensor | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Operands that an operator may be without, as a kernel's arguments, or else constants."""
    there = {name: tensor for name, tensor in operands.items() if tensor is not None}
    return there, dict.fromkeys(operands.keys() - there.keys())


def norm_operands(name: str, arguments: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and constants of `normalized` and where its rows lie, from the operator's arguments."""
    x, weight, *bias, residual, eps = arguments
    there, absent = given(weight=weight, bias=bias[0] if bias else None, residual=residual)
    strides = {"x_stride": x.strides[0], "residual_stride": 0 if residual is None else residual.strides[0]}
    return {"x": x, **there, **strides}, {**absent, "EPS": float(eps), "CENTERED": name == "layer_norm"}


def norm(name: str) -> Emit:
    """The emitter of rms_norm or layer_norm: x [T, K], weight [K]?, (bias [K]?,) residual [T, K]?, eps -> [T, K]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        features = out.shape[1]
        operands, constants = norm_operands(name, arguments)
        return [
            Launch(
                function=norm_kernel,
                grid=(out.shape[0], 1, 1),
                arguments={**operands, "out": out, "features": features, "out_stride": out.strides[0]},
                constants={**constants, "BLOCK": triton.next_power_of_2(features)},
                num_warps=warps_for(features),
            )
        ]

    return emit


EMITTERS: dict[str, Emit] = {name: norm(name) for name in ("rms_norm", "layer_norm")}
