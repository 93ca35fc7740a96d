"""The feed-forward layer, gated or plain."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .activations import Activation, activation
from .norm import NormSpec, applied


@dataclass(frozen=True, kw_only=True)
class MLPSpec:
    """size: features between the two products. gated: down(activation(gate(x)) * up(x)), else down(activation(up(x))).

    limit: where positive, gate is clamped to at most `limit` and up to -limit .. limit before anything else. up_plus: added to up.
    inner_norm: a norm before the last product.
    """

    size: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: float = 0.0
    up_plus: float = 0.0
    inner_norm: NormSpec | None = None


def inner(spec: MLPSpec, function: Callable[[torch.Tensor], torch.Tensor], gate: torch.Tensor | None, up: torch.Tensor) -> torch.Tensor:
    """What lies between the products, each feature by itself. gate and up [...] -> [...]. function: the activation."""
    if spec.limit > 0:
        gate, up = None if gate is None else gate.clamp(max=spec.limit), up.clamp(-spec.limit, spec.limit)
    if spec.up_plus:
        up = up + spec.up_plus
    return function(up) if gate is None else function(gate) * up


class MLP(nn.Module):
    """H features of the residual stream, F = spec.size features inside."""

    def __init__(self, spec: MLPSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.gate = nn.Linear(hidden_size, spec.size, bias=spec.bias) if spec.gated else None
        self.up = nn.Linear(hidden_size, spec.size, bias=spec.bias)
        self.down = nn.Linear(spec.size, hidden_size, bias=spec.bias)
        self.activation = activation(spec.activation)
        self.inner_norm = None if spec.inner_norm is None else spec.inner_norm.module(spec.size)

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        within = inner(self.spec, self.activation, None if self.gate is None else self.gate(x_TH), self.up(x_TH))
        out: torch.Tensor = self.down(applied(self.inner_norm, within))
        return out
