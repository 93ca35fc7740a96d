"""From the rows of a text's tokens to the one vector, or score, of the text.

Source: sentence-transformers' modules Pooling and Dense, and the classification heads of `transformers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import CheckpointError
from ...kernels.mean_pool import mean_pool
from ..step import Step
from .norm import NormSpec

PoolingKind = Literal["last", "cls", "mean"]
DenseActivation = Literal["none", "tanh", "gelu", "relu", "silu"]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"tanh": torch.tanh, "gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True, kw_only=True)
class DenseSpec:
    """norm(activation(linear(x))), with `size` features."""

    size: int
    bias: bool = True
    activation: DenseActivation = "none"
    norm: NormSpec | None = None


@dataclass(frozen=True, kw_only=True)
class PoolingSpec:
    """kind: the row of the last token, that of the first, or the mean of all. dense: what then follows, in order."""

    kind: PoolingKind
    dense: tuple[DenseSpec, ...] = ()

    def size(self, hidden_size: int) -> int:
        """Numbers of a text's vector."""
        return self.dense[-1].size if self.dense else hidden_size

    def check(self, *, causal: bool) -> None:
        """Raises CheckpointError for all but the last token of a causal model, whose texts may be computed in several steps."""
        if causal and self.kind != "last":
            raise CheckpointError(
                f"the checkpoint pools by {self.kind}, of a model whose tokens see only those before them",
                hint="of such models, those that take the last token are supported",
            )


class Pooling(nn.Module):
    """Its parameters: `dense0.weight`, `dense0.bias`, `norm0.*`, `dense1.weight`, ..."""

    def __init__(self, spec: PoolingSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.mean = mean_pool
        for index, dense in enumerate(spec.dense):
            self.add_module(f"dense{index}", nn.Linear(hidden_size, dense.size, bias=dense.bias))
            self.add_module(f"norm{index}", None if dense.norm is None else dense.norm.module(dense.size))
            hidden_size = dense.size

    def forward(self, x_TH: torch.Tensor, norm: nn.Module | None, step: Step) -> torch.Tensor:
        """x [T, H] -> [R, size], one row for each of the step's `logit_rows`, or of the mean for each sequence. norm: of rows, before."""
        if self.spec.kind == "mean":
            x = self.mean(x_TH if norm is None else norm(x_TH), step.cu_seqlens, step.seq_lens)
        else:
            x = x_TH.index_select(0, step.logit_rows)
            x = x if norm is None else norm(x)
        for index, dense in enumerate(self.spec.dense):
            x = self.get_submodule(f"dense{index}")(x)
            x = x if dense.activation == "none" else _ACTIVATIONS[dense.activation](x)
            x = x if dense.norm is None else self.get_submodule(f"norm{index}")(x)
        return x
