"""Rotary frequencies, computed in the order of operations that `transformers` uses, so that float32 results agree bit for bit.

Sources: RoPE, arXiv 2104.09864; YaRN, arXiv 2309.00071; llama3 scaling, the Llama 3.1 model card's reference code.
"""

import math

import torch

from .config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Radians per position of each rotated pair: [head_dim / 2] float32, without `attention_factor`.

    On the CPU whatever the default device: on "meta", a power would import Dynamo.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").to(torch.float32) / head_dim
    periods = rope.theta**exponents
    frequencies = 1.0 / periods
    match rope.kind:
        case "none":
            return frequencies
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            return _llama3(rope, frequencies)
        case "yarn":
            return _yarn(rope, periods, head_dim)
        case "divisors":
            return frequencies / torch.tensor(rope.divisors, dtype=torch.float32, device="cpu")


def _llama3(rope: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    longest_kept = rope.original_max_context / rope.high_freq_factor
    shortest_divided = rope.original_max_context / rope.low_freq_factor
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > shortest_divided, frequencies / rope.factor, frequencies)
    smooth = (rope.original_max_context / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = ~(wavelengths < longest_kept) & ~(wavelengths > shortest_divided)
    return torch.where(between, blended, scaled)


def _yarn(rope: RopeConfig, periods: torch.Tensor, head_dim: int) -> torch.Tensor:
    def dimension_turning(rotations: float) -> float:
        """The (fractional) pair index that turns this many times over the original context, times two."""
        return (head_dim * math.log(rope.original_max_context / (rotations * 2 * math.pi))) / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low), 0, 1)
    keep = 1 - ramp
    extrapolated = 1.0 / periods
    interpolated = 1.0 / (rope.factor * periods)
    return interpolated * (1 - keep) + extrapolated * keep


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """The factor on cos and sin that YaRN recommends for a context stretched `factor` times."""

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1)
