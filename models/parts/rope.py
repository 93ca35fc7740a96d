"""Rotary position embedding: its frequencies, and the rotation.

Frequencies are computed in the order of operations that `transformers` uses, so that float32 results agree bit for bit.
Sources: RoPE, arXiv 2104.09864; YaRN, arXiv 2309.00071; LongRoPE, arXiv 2402.13753; llama3 scaling, the Llama 3.1 model card's code.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ...errors import CheckpointError

RopeKind = Literal["none", "linear", "llama3", "yarn", "divisors", "longrope"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """A table of frequencies, and how it is scaled. Raises CheckpointError on values that cannot be.

    width: elements at the start of each head that are rotated, in pairs (i, i + width / 2); the rest passes.
    kind: "none" leaves the frequencies theta^(-2i/width) as they are; "linear", "llama3" and
        "yarn" scale them as Hugging Face `rope_parameters` of that name do; "divisors" divides
        frequency i by divisors[i], which is how GGUF states llama3 scaling; "longrope" multiplies
        period i by divisors[i].
    attention_factor: multiplies cos and sin.
    original_max_context: positions the model was trained on before scaling ("llama3", "yarn", "longrope").
    short_divisors: "longrope" has them for contexts of at most original_max_context (`for_context`).
    still: how many of the pairs do not turn, those with the lowest frequencies.
    """

    theta: float
    width: int
    kind: RopeKind = "none"
    attention_factor: float = 1.0
    factor: float = 1.0
    original_max_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    short_divisors: tuple[float, ...] = ()
    still: int = 0

    def __post_init__(self) -> None:
        if self.width <= 0 or self.width % 2:
            raise CheckpointError(
                f"the model's configuration rotates {self.width} elements of each head; it must be an even, positive number",
                hint="the head size, or the part of it that is rotated, is not one that rotary embedding can have",
            )
        if self.theta <= 1:
            raise _impossible(f"gives rope_theta = {self.theta}; it must be greater than 1")
        if not 0 <= self.still <= self.width // 2:
            raise _impossible(f"leaves {self.still} of {self.width // 2} pairs of each head as they are")
        if self.factor <= 0:
            raise _impossible(f"scales rotary embedding by factor = {self.factor}; it must be positive")
        if self.kind in ("llama3", "yarn") and self.original_max_context <= 0:
            raise _impossible(f"gives an original context of {self.original_max_context} tokens")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise _impossible(
                f"gives low_freq_factor = {self.low_freq_factor} and high_freq_factor = {self.high_freq_factor};"
                " the first must be positive and less than the second"
            )
        if self.kind == "yarn" and not 0 < self.beta_slow < self.beta_fast:
            raise _impossible(
                f"gives beta_slow = {self.beta_slow} and beta_fast = {self.beta_fast}; the first must be positive and less than the second"
            )
        for divisors in (self.divisors, self.short_divisors):
            if divisors and len(divisors) != self.width // 2:
                raise CheckpointError(
                    f"{len(divisors)} rotary frequency divisors for {self.width} rotated elements; {self.width // 2} are needed",
                    hint="the file is damaged, or its configuration belongs to another model",
                )

    def for_context(self, max_context: int) -> "RopeSpec":
        """The table for sequences of at most max_context tokens: one for all of them, so that no token changes what others computed."""
        if self.kind != "longrope" or max_context > self.original_max_context:
            return self
        return replace(self, divisors=self.short_divisors)


def _impossible(what: str) -> CheckpointError:
    return CheckpointError(f"the model's configuration {what}", hint="the file was edited or damaged; fetch the checkpoint again")


class Rope(nn.Module):
    """Angles of the rotary embedding. Its buffer `inv_freq` [width / 2] is a weight like any other to the compiler."""

    inv_freq: torch.Tensor

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(spec))
        self.attention_factor = spec.attention_factor

    def forward(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] int32 -> cos and sin, each [T, width / 2]."""
        angles = positions_T.to(torch.float32)[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos, sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns pair (i, i + width / 2) of every head by its angle: x [T, heads, D], cos and sin [T, width / 2] -> [T, heads, D]."""
    width = 2 * cos.shape[1]
    if width < x.shape[2]:
        return torch.cat((_rotate_all(x[..., :width], cos, sin), x[..., width:]), dim=-1)
    return _rotate_all(x, cos, sin)


def _rotate_all(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def inverse_frequencies(rope: RopeSpec) -> torch.Tensor:
    """Radians per position of each rotated pair: [width / 2] float32, without `attention_factor`.

    On the CPU whatever the default device: on "meta", a power would import Dynamo.
    """
    frequencies = _scaled_frequencies(rope)
    frequencies[rope.width // 2 - rope.still :] = 0
    return frequencies


def _scaled_frequencies(rope: RopeSpec) -> torch.Tensor:
    exponents = torch.arange(0, rope.width, 2, dtype=torch.int64, device="cpu").to(torch.float32) / rope.width
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
            return _yarn(rope, periods)
        case "divisors":
            return frequencies / torch.tensor(rope.divisors, dtype=torch.float32, device="cpu")
        case "longrope":
            return 1.0 / (torch.tensor(rope.divisors, dtype=torch.float32, device="cpu") * periods)


def _llama3(rope: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    longest_kept = rope.original_max_context / rope.high_freq_factor
    shortest_divided = rope.original_max_context / rope.low_freq_factor
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > shortest_divided, frequencies / rope.factor, frequencies)
    smooth = (rope.original_max_context / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    between = ~(wavelengths < longest_kept) & ~(wavelengths > shortest_divided)
    return torch.where(between, blended, scaled)


def _yarn(rope: RopeSpec, periods: torch.Tensor) -> torch.Tensor:
    def dimension_turning(rotations: float) -> float:
        """The (fractional) pair index that turns this many times over the original context, times two."""
        return (rope.width * math.log(rope.original_max_context / (rotations * 2 * math.pi))) / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(rope.width // 2, dtype=torch.float32, device="cpu") - low) / (high - low), 0, 1)
    keep = 1 - ramp
    extrapolated = 1.0 / periods
    interpolated = 1.0 / (rope.factor * periods)
    return interpolated * (1 - keep) + extrapolated * keep


def longrope_attention_factor(factor: float, original_max_context: int) -> float:
    """The factor on cos and sin that LongRoPE recommends for a context stretched `factor` times."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_context))


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """The factor on cos and sin that YaRN recommends for a context stretched `factor` times."""
    if mscale and mscale_all_dim:
        return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim)
    return yarn_magnitude(factor, 1)


def yarn_magnitude(factor: float, scale: float) -> float:
    """By how much queries, and keys, are to grow with a context stretched `factor` times: 0.1 * scale * ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
