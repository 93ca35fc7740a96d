"""What rewrites need to know of our linear operators: (x, weight, bias, residual, out_features)."""

import torch
from torch import fx

from ..kernels.ops import LINEAR_KERNELS


def is_linear(node: fx.Node) -> bool:
    """Whether `node` calls one of our linears."""
    return node.target in {getattr(torch.ops.engine, f"linear_{kernel}").default for kernel in LINEAR_KERNELS}
