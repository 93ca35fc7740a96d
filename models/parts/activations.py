"""Activations of feed-forward layers, by the field's names."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "sigmoid", "softplus", "xielu"]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu2,
    "quick_gelu": _quick_gelu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}


def activation(name: Activation) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of that name, elementwise; a module where it learns something."""
    return XIELU() if name == "xielu" else _FUNCTIONS[name]


class XIELU(nn.Module):
    """xIELU, arXiv 2411.13010: a parabola for positive x, an exponential that turns into one for negative x; both curvatures are learned.

    alpha_p and alpha_n [1] are what training moves, before softplus; beta and eps [] are constants that the checkpoint carries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.beta = nn.Parameter(torch.empty(()))
        self.eps = nn.Parameter(torch.empty(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., F] -> the same shape."""
        positive = F.softplus(self.alpha_p) * x * x
        negative = (torch.expm1(torch.minimum(x, self.eps)) - x) * (self.beta + F.softplus(self.alpha_n))
        return torch.where(x > 0, positive, negative) + self.beta * x
