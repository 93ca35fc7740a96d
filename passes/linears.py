"""What rewrites need to know of our linear operators."""

from typing import Any, NamedTuple

import torch
from torch import fx

from ..kernels.formats import LINEAR_KERNELS


class LinearArguments(NamedTuple):
    """(x weight^T + bias) * multiplier + residual, in the order of the schema. out_features: of linear_mixed, the bands."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    residual: fx.Node | None
    out_features: int | str
    multiplier: float


def is_linear(node: fx.Node) -> bool:
    """Whether `node` calls one of our linears."""
    return node.target in {getattr(torch.ops.engine, f"linear_{kernel}").default for kernel in LINEAR_KERNELS}


def linear_arguments(linear: fx.Node) -> LinearArguments:
    arguments: Any = linear.args
    return LinearArguments(*arguments)
