"""Inputs that each layer has of its own: a token's embedding for that layer, beside what the residual stream begins with.

Legend: T tokens of the step, H features of the residual stream, L layers, P features of an input.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .activations import Activation, activation
from .norm import NormSpec


@dataclass(frozen=True, kw_only=True)
class LayerInputsSpec:
    """How a token's inputs are made, and what a layer adds to the residual stream x because of its own.

        input of layer l = norm(projection_l(x0)) + embed_l(token)        x0: what the residual stream begins with
        x + post_norm(down(activation(gate(x)) * input))                  behind mixer and channel

    size: P. embed_multiplier, multiplier: of embed and projection. Gemma 3n and 4 have them, which call them per-layer embeddings.
    """

    size: int
    activation: Activation
    norm: NormSpec
    post_norm: NormSpec
    embed_multiplier: float = 1.0
    multiplier: float = 1.0


class LayerInputs(nn.Module):
    """Makes the inputs of all layers at once: their embeddings lie side by side in one table, their projections in one matrix."""

    def __init__(self, spec: LayerInputsSpec, *, layers: int, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(vocab_size, layers * spec.size)
        self.projection = nn.Linear(hidden_size, layers * spec.size, bias=False)
        self.norm = spec.norm.module(spec.size)

    def forward(self, tokens_T: torch.Tensor, x_TH: torch.Tensor) -> list[torch.Tensor]:
        """tokens [T] and what their residual stream begins with -> of each layer [T, P]."""
        embedded, projected = self.embed(tokens_T), self.projection(x_TH)
        if self.spec.embed_multiplier != 1.0:
            embedded = embedded * self.spec.embed_multiplier
        if self.spec.multiplier != 1.0:
            projected = projected * self.spec.multiplier
        parts = zip(projected.split(self.spec.size, dim=1), embedded.split(self.spec.size, dim=1), strict=True)
        return [self.norm(of_stream) + of_token for of_stream, of_token in parts]


class LayerInput(nn.Module):
    """What one layer makes of its input."""

    def __init__(self, spec: LayerInputsSpec, hidden_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, spec.size, bias=False)
        self.activation = activation(spec.activation)
        self.down = nn.Linear(spec.size, hidden_size, bias=False)
        self.post_norm = spec.post_norm.module(hidden_size)

    def forward(self, x_TH: torch.Tensor, own_TP: torch.Tensor) -> torch.Tensor:
        """The residual stream [T, H] and the layer's input [T, P] -> what is added to the stream, [T, H]."""
        out: torch.Tensor = self.post_norm(self.down(self.activation(self.gate(x_TH)) * own_TP))
        return out
