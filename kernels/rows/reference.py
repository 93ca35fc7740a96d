"""What the row operators compute, in plain PyTorch and the dtype of `x`. Each has a twin whose result is quantized at once."""

import torch
from torch import Tensor
from torch.nn import functional

from ..linear.activations import quantize


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, K], weight [K] -> weight * x / sqrt(mean(x^2) + eps), [T, K] (arXiv 1910.07467)."""
    return weight * (x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps))


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up [T, F] -> gate * sigmoid(gate) * up, [T, F]."""
    return functional.silu(gate) * up


def rms_norm_quantize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`quantize` of `rms_norm`: uint8 [T, ceil(K / 32), 48]."""
    return quantize(rms_norm(x, weight, eps))


def silu_mul_quantize(gate: Tensor, up: Tensor) -> Tensor:
    """`quantize` of `silu_mul`: uint8 [T, ceil(F / 32), 48]."""
    return quantize(silu_mul(gate, up))
