"""RMSNorm and SiLU-mul over the rows of a step, one launch each.

Both read and write every element once and are bound by memory; at the few rows of a decode step
by the latency of one launch. Float32 inside, rounded once at the store.
"""

from typing import Any

import triton
import triton.language as tl

from .launch import Context, Launch, Tensor, cdiv

_SILU_BLOCK = 1024


@triton.jit
def rms_norm_kernel(x, weight, out, features, x_stride, out_stride, EPS: tl.constexpr, BLOCK: tl.constexpr):
    """One row [features] per program, which stays in registers between the sum and the product."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < features
    values = tl.load(x + row * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    weights = tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values, 0) / features + EPS) * weights
    tl.store(out + row * out_stride + k, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(gate, up, out, features, gate_stride, up_stride, out_stride, BLOCK: tl.constexpr):
    """BLOCK elements of one row per program."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    g = tl.load(gate + row * gate_stride + k, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + k, (g / (1 + tl.exp(-g)) * u).to(out.dtype.element_ty), mask=inside)


def warps_for(elements: int) -> int:
    """Warps for a program that holds a row of `elements`: about 16 of them per thread."""
    return int(min(16, max(1, triton.next_power_of_2(elements) // 512)))


def rms_norm(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """x [T, K], weight [K], eps -> [T, K]."""
    x, weight, eps = arguments
    features = x.shape[1]
    return [
        Launch(
            function=rms_norm_kernel,
            grid=(x.shape[0], 1, 1),
            arguments={"x": x, "weight": weight, "out": out, "features": features, "x_stride": x.strides[0], "out_stride": out.strides[0]},
            constants={"EPS": float(eps), "BLOCK": triton.next_power_of_2(features)},
            num_warps=warps_for(features),
        )
    ]


def silu_mul(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """gate and up [T, F] -> gate * sigmoid(gate) * up, [T, F]."""
    gate, up = arguments
    features = gate.shape[1]
    strides = {"gate_stride": gate.strides[0], "up_stride": up.strides[0], "out_stride": out.strides[0]}
    return [
        Launch(
            function=silu_mul_kernel,
            grid=(gate.shape[0], cdiv(features, _SILU_BLOCK), 1),
            arguments={"gate": gate, "up": up, "out": out, "features": features, **strides},
            constants={"BLOCK": _SILU_BLOCK},
        )
    ]
