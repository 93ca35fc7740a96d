"""Routers of every kind, and choices that none of them has to make."""

import torch
from torch import Tensor

from engine.kernels.moe.options import RouteOptions

ROUTERS = {
    "softmax": RouteOptions(chosen=2, score="softmax"),
    "softmax, normalized": RouteOptions(chosen=8, score="softmax", normalized=True),
    "softmax, normalized with a least sum": RouteOptions(chosen=6, score="softmax", normalized=True, least=1e-12),
    "softmax of the chosen": RouteOptions(chosen=4, score="identity", weighting="softmax"),
    "sigmoid of the chosen": RouteOptions(chosen=4, score="identity", weighting="sigmoid", normalized=True),
    "sigmoid in groups": RouteOptions(chosen=8, score="sigmoid", groups=8, kept=4, best=2, normalized=True, eps=1e-20, scale=2.5),
    "softmax in groups": RouteOptions(chosen=6, score="softmax", groups=8, kept=3, best=1, zero_outside=True, scale=16.0),
    "square root of softplus": RouteOptions(chosen=6, score="sqrt_softplus", normalized=True, eps=1e-20, scale=1.5),
    "logits": RouteOptions(chosen=1, score="identity"),
    "softmax, one shared": RouteOptions(chosen=2, score="softmax", normalized=True, scale=0.5, shared=1),
    "sigmoid in groups, two shared": RouteOptions(chosen=7, score="sigmoid", groups=8, kept=4, best=2, scale=2.5, shared=2),
}


def routes_of(ids: list[list[int]], seed: int = 0) -> Tensor:
    """Routes to these experts with random weights."""
    weights = torch.rand(len(ids), len(ids[0]), generator=torch.Generator().manual_seed(seed))
    return torch.stack((torch.tensor(ids, dtype=torch.int32), weights.view(torch.int32)), dim=1)
