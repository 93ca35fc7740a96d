"""What the activation operators compute, in plain PyTorch and the dtype of `x`: element by element."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
}
"""By the name of the operator; row_operators.FUNCTIONS lists them."""


def gated(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """gate and up [T, F] -> function(gate) * up, [T, F]."""
    return lambda gate, up: function(gate) * up


def clamped(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, float, float], Tensor]:
    """gate and up [T, F], limit, plus -> function(min(gate, limit)) * (clamp(up, -limit, limit) + plus), [T, F]."""
    return lambda gate, up, limit, plus: function(gate.clamp(max=limit)) * (up.clamp(-limit, limit) + plus)


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
    """alpha_p x^2 + beta x where x > 0, else alpha_n (e^min(x, eps) - 1 - x) + beta x (arXiv 2411.13010); parameters of one element."""
    return torch.where(x > 0, alpha_p * x * x, (torch.expm1(torch.minimum(x, eps)) - x) * alpha_n) + beta * x


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap)."""
    return cap * torch.tanh(x / cap)


def clip(x: Tensor, limit: float) -> Tensor:
    """x, at least -limit and at most limit."""
    return x.clamp(-limit, limit)
