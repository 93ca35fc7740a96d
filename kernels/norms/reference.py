"""What the norms compute, in plain PyTorch and the dtype of `x`."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float) -> Tensor:
    """x [T, K], weight [K] -> weight * x / sqrt(mean(x^2) + eps), [T, K] (arXiv 1910.07467); plus residual [T, K]."""
    return _affine(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps), weight, None, residual)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float) -> Tensor:
    """The same of x - mean(x), plus bias [K] before the residual (arXiv 1607.06450)."""
    centered = x - x.mean(-1, keepdim=True)
    return _affine(centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps), weight, bias, residual)


def rms_norm_heads(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The same over every head: x [T, H, D], weight [D] or [H, D] -> [T, H, D]."""
    return rms_norm(x, weight, None, eps)


def layer_norm_heads(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The same over every head: x [T, H, D], weight and bias [D] or [H, D] -> [T, H, D]."""
    return layer_norm(x, weight, bias, None, eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    x = x if weight is None else weight * x
    for added in (bias, residual):
        x = x if added is None else x + added
    return x
