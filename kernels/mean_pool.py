"""One vector of each sequence: the mean of its rows, as an operator and in plain PyTorch."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor


def mean_pool(x: Tensor, cu_seqlens: Tensor, seq_lens: Tensor) -> Tensor:
    """x [T, K] float32, cu_seqlens [S + 1] and seq_lens [S] int32 -> [S, K] float32.

    Every sequence must be there as a whole. Rows are summed in their order, so a mean does not depend on what is computed beside it.
    """
    return cast(Tensor, torch.ops.engine.mean_pool(x, cu_seqlens, seq_lens))


def reference(x: Tensor, cu_seqlens: Tensor, seq_lens: Tensor) -> Tensor:
    """What the operator computes, but for the order of sums."""
    return torch.stack([x[first:last].mean(0) for first, last in pairwise(cu_seqlens.tolist())])
