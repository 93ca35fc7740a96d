"""Activation functions over the rows of a step, alone or times another matrix, one launch each.

Bound by memory, and at the few rows of a decode step by the latency of one launch. Float32
inside, rounded once at the store.
"""

from typing import Any

import triton
import triton.language as tl

from ..row_operators import FUNCTIONS, ROW_OPERATORS
from .context import Context, Emit
from .launch import Launch, Tensor, cdiv

_BLOCK = 1024
PARAMETERS = ("alpha_p", "alpha_n", "beta", "eps")
"""Scalars that xielu has, in its order."""


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def log_of_one_and(t):
    """ln(1 + t) of t up to 1: twice the series of artanh(t / (2 + t)), as on CPUs (cpu/activation_functions.h)."""
    s = t / (2 + t)
    square = s * s
    p = 1 / 15 * square + 1 / 13
    p = p * square + 1 / 11
    p = p * square + 1 / 9
    p = p * square + 1 / 7
    p = p * square + 1 / 5
    p = p * square + 1 / 3
    return 2 * (p * square * s + s)


@triton.jit
def softplus(x):
    return tl.where(x < 0, 0.0, x) + log_of_one_and(tl.exp(-tl.abs(x)))


@triton.jit
def activated(x, alpha_p, alpha_n, beta, eps, FUNCTION: tl.constexpr):
    """The function of that name (see row_operators.py), of float32. alpha_p and those after it: pointers to the parameters of xielu."""
    if FUNCTION == "silu":
        y = x / (1 + tl.exp(-x))
    elif FUNCTION == "sigmoid":
        y = sigmoid(x)
    elif FUNCTION == "softplus":
        y = softplus(x)
    elif FUNCTION == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif FUNCTION == "gelu_tanh":
        y = x * sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))
    elif FUNCTION == "quick_gelu":
        y = x * sigmoid(1.702 * x)
    elif FUNCTION == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif FUNCTION == "relu2":
        y = tl.where(x < 0, 0.0, x * x)
    else:
        tl.static_assert(FUNCTION == "xielu")
        least = tl.where(x < tl.load(eps), x, tl.load(eps))
        bent = tl.where(x > 0, tl.load(alpha_p) * x * x, (tl.exp(least) - 1 - x) * tl.load(alpha_n))
        y = bent + tl.load(beta) * x
    return y


@triton.jit
def activation_kernel(
    x, up, alpha_p, alpha_n, beta, eps, out, features, x_stride, up_stride, out_stride, FUNCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of one row per program; times those of `up`, where it is given."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    values = activated(tl.load(x + row * x_stride + k, mask=inside, other=0.0).to(tl.float32), alpha_p, alpha_n, beta, eps, FUNCTION)
    if up is not None:
        values = values * tl.load(up + row * up_stride + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + k, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def soft_cap_kernel(x, out, features, x_stride, out_stride, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """cap * tanh(x / cap), BLOCK elements of one row per program. tanh by e^-2|y|, which never overflows; near 0 by its series."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < features
    y = tl.load(x + row * x_stride + k, mask=inside, other=0.0).to(tl.float32) / CAP
    power = tl.exp(-2 * tl.abs(y))
    large = tl.where(y < 0, -1.0, 1.0) * (1 - power) / (1 + power)
    square = y * y
    small = y * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    tanh = tl.where(tl.abs(y) < 0.25, small, large)
    tl.store(out + row * out_stride + k, (CAP * tanh).to(out.dtype.element_ty), mask=inside)


def activation_operands(name: str, arguments: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and constants of `activated`, of what it is multiplied with, and where rows lie, from the operator's arguments."""
    function = name.removesuffix("_mul")
    x, *others = arguments
    ups, parameters = (others, []) if function in FUNCTIONS else ([], others)
    there = {"x": x, "x_stride": x.strides[0], "up_stride": ups[0].strides[0] if ups else 0}
    there |= dict(zip(("up",), ups, strict=False)) | dict(zip(PARAMETERS, parameters, strict=False))
    absent = dict.fromkeys({"up", *PARAMETERS} - there.keys())
    return there, {**absent, "FUNCTION": function}


def activation(name: str) -> Emit:
    """The emitter of x [T, K], for gates another matrix [T, K], for xielu its parameters [1] -> [T, K]."""

    def emit(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
        operands, constants = activation_operands(name, arguments)
        return [_launch(activation_kernel, out, operands, constants)]

    return emit


def soft_cap(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """x [R, V], cap -> [R, V]."""
    x, cap = arguments
    return [_launch(soft_cap_kernel, out, {"x": x, "x_stride": x.strides[0]}, {"CAP": float(cap)})]


def _launch(function: Any, out: Tensor, arguments: dict[str, Any], constants: dict[str, Any]) -> Launch:
    features = out.shape[1]
    return Launch(
        function=function,
        grid=(out.shape[0], cdiv(features, _BLOCK), 1),
        arguments={**arguments, "out": out, "features": features, "out_stride": out.strides[0]},
        constants={**constants, "BLOCK": _BLOCK},
    )


EMITTERS: dict[str, Emit] = {
    **{name: activation(name) for name in ROW_OPERATORS if name.removesuffix("_mul") in (*FUNCTIONS, "xielu")},
    "soft_cap": soft_cap,
}
