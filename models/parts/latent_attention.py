"""Multi-head latent attention: keys and values of all heads are made of one latent per token, which is all that is kept.

Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; written expanded, as there. `passes/absorb_latent.py` moves the two matrices that
make keys and values of latents to the queries and to the result.

Legend: T tokens of the step, H hidden size, QH heads, N elements of a query or key without positions, R with, V of a value, L of a latent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import CheckpointError
from ...kernels.attention.op import expanded_attention
from ..step import GroupInputs, Step
from .attention import Angles, KVCache, TemperatureSpec, Written, temperature
from .norm import NormSpec
from .rope import RopeSpec, rotate


@dataclass(frozen=True, kw_only=True)
class LatentAttentionSpec:
    """One layer's latent attention. Raises CheckpointError on shapes that cannot be.

    rank: elements of a latent, L. query_rank: of what queries are made of; 0 where they are made of x itself. plain_dim, rope.width,
    value_dim: N, R and V. scale: what products of queries and keys are multiplied with. norm: of latents, and of what queries are made of.
    bias: of the linears that read x. output_bias: of the last one.
    """

    num_heads: int
    rank: int
    query_rank: int
    plain_dim: int
    value_dim: int
    rope: RopeSpec
    scale: float
    norm: NormSpec
    bias: bool = False
    output_bias: bool = False
    temperature: TemperatureSpec | None = None

    # What a cache of latents is to those who look after caches: one key that all heads share, seen from anywhere.
    num_kv_heads = 1
    window = 0
    chunk = 0
    source = None
    causal = True
    cache_parts = ("latent",)

    def __post_init__(self) -> None:
        for name in ("num_heads", "rank", "plain_dim", "value_dim"):
            if getattr(self, name) <= 0:
                raise CheckpointError(
                    f"the model's configuration gives {name} = {getattr(self, name)} of latent attention; it must be positive",
                    hint="the file was edited or damaged; fetch the checkpoint again",
                )
        if self.query_rank < 0:
            raise CheckpointError(
                f"the model's configuration gives query_rank = {self.query_rank}; it must not be negative",
                hint="the file was edited or damaged; fetch the checkpoint again",
            )

    @property
    def head_dim(self) -> int:
        """Of what is kept of a token: its latent, and the key's part with positions."""
        return self.rank + self.rope.width

    @property
    def query_dim(self) -> int:
        return self.plain_dim + self.rope.width


class LatentAttention(nn.Module):
    """The mixer of a layer.

    `key_up` [QH * L, N] holds for each head the matrix that makes its key of a latent, transposed: rows of a head are multiplied with
    elements of a latent. `value_up` [QH * V, L] makes values.
    """

    def __init__(self, spec: LatentAttentionSpec, hidden_size: int) -> None:
        super().__init__()
        queries = spec.num_heads * spec.query_dim
        if spec.query_rank:
            self.q_down = nn.Linear(hidden_size, spec.query_rank, bias=spec.bias)
            self.q_norm = spec.norm.module(spec.query_rank)
            self.q = nn.Linear(spec.query_rank, queries, bias=False)
        else:
            self.q = nn.Linear(hidden_size, queries, bias=False)
        self.latent = nn.Linear(hidden_size, spec.head_dim, bias=spec.bias)
        self.latent_norm = spec.norm.module(spec.rank)
        self.key_up = nn.Linear(spec.plain_dim, spec.num_heads * spec.rank, bias=False)
        self.value_up = nn.Linear(spec.rank, spec.num_heads * spec.value_dim, bias=False)
        self.o = nn.Linear(spec.num_heads * spec.value_dim, hidden_size, bias=spec.output_bias)
        self.spec = spec
        self.attend: Callable[..., torch.Tensor] = expanded_attention

    def forward(
        self,
        x_TH: torch.Tensor,
        angles: Angles | None,
        step: Step,
        group: GroupInputs | None,
        cache: KVCache | None,
        shared: Written | None,
    ) -> tuple[torch.Tensor, Written]:
        """x [T, H] -> [T, H], and the latents that it wrote, [T, L + R]. As `Attention.forward`, but that no layer shares its cache."""
        assert angles is not None
        assert shared is None
        spec, weights = self.spec, (self.key_up.weight, self.value_up.weight)
        q, latents = self._queries(x_TH, angles, step), self._latents(x_TH, angles)
        if cache is None or group is None:
            out = self.attend(q, latents, *weights, step.cu_seqlens, spec.scale)
        else:
            out = self.attend(q, latents, *weights, *cache, step.cu_seqlens, step.seq_lens, *group, spec.scale)
        projected: torch.Tensor = self.o(out.flatten(1))
        return projected, (latents,)

    def _queries(self, x_TH: torch.Tensor, angles: Angles, step: Step) -> torch.Tensor:
        """[T, QH, N + R]"""
        spec = self.spec
        made_of = self.q_norm(self.q_down(x_TH)) if spec.query_rank else x_TH
        q = self.q(made_of).view(-1, spec.num_heads, spec.query_dim)
        if spec.temperature is not None:
            q = q * temperature(spec.temperature, step.positions)[:, None, None]
        plain, turned = q.split((spec.plain_dim, spec.rope.width), dim=2)
        return torch.cat((plain, rotate(turned, *angles)), dim=2)

    def _latents(self, x_TH: torch.Tensor, angles: Angles) -> torch.Tensor:
        """[T, L + R]"""
        latents, key = self.latent(x_TH).split((self.spec.rank, self.spec.rope.width), dim=1)
        return torch.cat((self.latent_norm(latents), rotate(key[:, None], *angles)[:, 0]), dim=1)
