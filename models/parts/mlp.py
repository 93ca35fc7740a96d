"""The feed-forward layer, gated or plain."""

from dataclasses import dataclass

import torch
from torch import nn

from .activations import Activation, activation
from .norm import NormSpec


@dataclass(frozen=True, kw_only=True)
class MLPSpec:
    """size: features between the two products. gated: down(activation(gate(x)) * up(x)), else down(activation(up(x))).

    limit: where positive, gate is clamped to at most `limit` and up to -limit .. limit before anything else.
    inner_norm: a norm before the last product.
    """

    size: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: float = 0.0
    inner_norm: NormSpec | None = None


class MLP(nn.Module):
    """H features of the residual stream, F = spec.size features inside."""

    def __init__(self, spec: MLPSpec, hidden_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, spec.size, bias=spec.bias) if spec.gated else None
        self.up = nn.Linear(hidden_size, spec.size, bias=spec.bias)
        self.down = nn.Linear(spec.size, hidden_size, bias=spec.bias)
        self.activation = activation(spec.activation)
        self.inner_norm = None if spec.inner_norm is None else spec.inner_norm.module(spec.size)
        self.limit = spec.limit

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        gate, up = None if self.gate is None else self.gate(x_TH), self.up(x_TH)
        if self.limit > 0:
            gate, up = None if gate is None else gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        inner = self.activation(up) if gate is None else self.activation(gate) * up
        out: torch.Tensor = self.down(inner if self.inner_norm is None else self.inner_norm(inner))
        return out
