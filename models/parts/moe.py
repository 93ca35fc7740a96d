"""Mixture of experts: a router chooses a few of many feed-forward layers for each token; their results are added, weighted.

Plain, as papers write it: every expert computes every token, weighted by a table that is zero where it was not chosen. That is slow and
obviously right; `passes/group_experts.py` makes of it products with the chosen experts alone.

Legend: T tokens, H features of the residual stream, E experts, k of them chosen, F features inside an expert.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .activations import activation
from .mlp import MLP, MLPSpec, inner
from .norm import NormSpec, applied

Score = Literal["softmax", "sigmoid", "sqrt_softplus", "identity"]
"""What a router makes of logits, over all experts."""
Weighting = Literal["scores", "softmax", "sigmoid"]
"""Weights of the chosen: their scores, or a function of these, a softmax over the k of them alone."""


@dataclass(frozen=True, kw_only=True)
class ExpertGroupsSpec:
    """Experts in `count` groups of equal size, of which only those of the `kept` best groups may be chosen.

    best: how many of a group's largest scores are added to its own. zero_outside: whether experts in other groups count as zero; else they
    cannot be chosen.
    """

    count: int
    kept: int
    best: Literal[1, 2] = 2
    zero_outside: bool = False


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """How k of E experts are chosen, and what their results are multiplied with.

        logits = norm(x) W^T (+ bias), drawn softly between -softcap and softcap where that is positive
        scores = score(logits), choice = scores (+ choice_bias), outside the best groups -infinity or 0
        the k largest of choice, of equals the lower index first; weights = weighting(scores of the chosen)
        normalized: / max(sum + eps, least); all times scale, and where there is an expert_scale, times that of the expert

    All in float32; norm: None where it reads x as it is. Softmax routers: Mixtral, arXiv 2401.04088; sigmoid with choice_bias and groups:
    DeepSeek-V3, arXiv 2412.19437.
    """

    experts: int
    chosen: int
    score: Score = "softmax"
    bias: bool = False
    softcap: float = 0.0
    choice_bias: bool = False
    groups: ExpertGroupsSpec | None = None
    weighting: Weighting = "scores"
    normalized: bool = False
    eps: float = 0.0
    least: float = 0.0
    scale: float = 1.0
    expert_scale: bool = False
    norm: NormSpec | None = None


@dataclass(frozen=True, kw_only=True)
class BranchNorms:
    """Norms of experts and of what they share, each with its own: of what they read, and of what they give."""

    before_experts: NormSpec
    after_experts: NormSpec
    before_shared: NormSpec
    after_shared: NormSpec


@dataclass(frozen=True, kw_only=True)
class MoESpec:
    """experts, shared: what each expert is, and what computes every token beside them. weighs_input: whether a weight multiplies what its
    expert reads, as in Llama 4, and not what it gives; experts have no biases then. shared_gate: whether what is beside them is multiplied
    with sigmoid(x w). multiplier: of the sum of both. norms: of both, where there are both; the router reads what comes before them."""

    router: RouterSpec
    experts: MLPSpec
    weighs_input: bool = False
    shared: MLPSpec | None = None
    shared_gate: bool = False
    multiplier: float = 1.0
    norms: BranchNorms | None = None

    @property
    def size(self) -> int:
        """Features inside an expert."""
        return self.experts.size


class Router(nn.Module):
    """Which experts compute a token, and with which weights."""

    def __init__(self, spec: RouterSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(spec.experts)) if spec.bias else None
        self.choice_bias = nn.Parameter(torch.empty(spec.experts)) if spec.choice_bias else None
        self.expert_scale = nn.Parameter(torch.empty(spec.experts)) if spec.expert_scale else None
        self.norm = None if spec.norm is None else spec.norm.module(hidden_size)

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> the table of weights [T, E], zero where an expert is not chosen."""
        spec = self.spec
        logits = F.linear(x_TH if self.norm is None else self.norm(x_TH), self.weight, self.bias)
        if spec.softcap > 0:
            logits = torch.tanh(logits / spec.softcap) * spec.softcap
        scores = _scored(logits, spec.score)
        choice = scores if self.choice_bias is None else scores + self.choice_bias
        if spec.groups is not None:
            choice = _in_best_groups(choice, spec.groups)
        # Sorted, since topk promises no order of equals.
        chosen = choice.sort(dim=1, descending=True, stable=True).indices[:, : spec.chosen]
        weights = _weighted(scores.gather(1, chosen), spec.weighting)
        if spec.normalized:
            weights = weights / (weights.sum(1, keepdim=True) + spec.eps).clamp(min=spec.least)
        if spec.scale != 1.0:
            weights = weights * spec.scale
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[chosen]
        return torch.zeros_like(scores).scatter(1, chosen, weights)


class Experts(nn.Module):
    """E feed-forward layers of one shape; those of all experts lie one after another in each matrix, [E * F, H] and [E * H, F]."""

    def __init__(self, count: int, spec: MLPSpec, hidden_size: int, *, weighs_input: bool = False) -> None:
        super().__init__()
        assert not (weighs_input and spec.bias)
        self.count, self.spec, self.weighs_input = count, spec, weighs_input
        self.gate = nn.Linear(hidden_size, count * spec.size, bias=spec.bias) if spec.gated else None
        self.up = nn.Linear(hidden_size, count * spec.size, bias=spec.bias)
        self.down = nn.Linear(spec.size, count * hidden_size, bias=spec.bias)
        self.activation = activation(spec.activation)

    def forward(self, x_TH: torch.Tensor, table_TE: torch.Tensor) -> torch.Tensor:
        """x [T, H] and weights [T, E] -> the weighted sum of what experts give, or the sum of what they make of x weighted, [T, H]."""
        if self.weighs_input:
            return self._of_weighted(x_TH * table_TE.t().unsqueeze(2)).sum(0)
        within = inner(self.spec, self.activation, None if self.gate is None else self.gate(x_TH), self.up(x_TH))
        inner_ETF = within.unflatten(1, (self.count, -1)).transpose(0, 1)
        out_ETH = self._each(inner_ETF, self.down)
        if self.down.bias is not None:
            out_ETH = out_ETH + self.down.bias.unflatten(0, (self.count, 1, -1))
        out: torch.Tensor = (out_ETH * table_TE.t().unsqueeze(2)).sum(0)
        return out

    def _of_weighted(self, x_ETH: torch.Tensor) -> torch.Tensor:
        """What each expert makes of its rows, [E, T, H]: of rows of zeros, zeros."""
        gate = None if self.gate is None else self._each(x_ETH, self.gate)
        return self._each(inner(self.spec, self.activation, gate, self._each(x_ETH, self.up)), self.down)

    def _each(self, x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
        """Rows of each expert [E, T, K] times its matrix -> [E, T, N]."""
        return torch.bmm(x, linear.weight.unflatten(0, (self.count, -1)).transpose(1, 2))


class MoE(nn.Module):
    """A channel of experts, and of what they share."""

    def __init__(self, spec: MoESpec, hidden_size: int) -> None:
        super().__init__()
        self.router = Router(spec.router, hidden_size)
        self.experts = Experts(spec.router.experts, spec.experts, hidden_size, weighs_input=spec.weighs_input)
        self.shared = None if spec.shared is None else MLP(spec.shared, hidden_size)
        self.shared_gate = nn.Linear(hidden_size, 1, bias=False) if spec.shared_gate else None
        norms = spec.norms
        self.experts_norm = None if norms is None else norms.before_experts.module(hidden_size)
        self.experts_post_norm = None if norms is None else norms.after_experts.module(hidden_size)
        self.shared_norm = None if norms is None else norms.before_shared.module(hidden_size)
        self.shared_post_norm = None if norms is None else norms.after_shared.module(hidden_size)
        self.multiplier = spec.multiplier

    def forward(self, x_TH: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H]."""
        out: torch.Tensor = applied(self.experts_post_norm, self.experts(applied(self.experts_norm, x_TH), self.router(x_TH)))
        if self.shared is not None:
            shared = applied(self.shared_post_norm, self.shared(applied(self.shared_norm, x_TH)))
            out = out + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x_TH)) * shared)
        return out if self.multiplier == 1.0 else out * self.multiplier


def _scored(logits: torch.Tensor, score: Score) -> torch.Tensor:
    match score:
        case "softmax":
            return logits.softmax(1)
        case "sigmoid":
            return logits.sigmoid()
        case "sqrt_softplus":
            return F.softplus(logits).sqrt()
        case "identity":
            return logits


def _weighted(scores: torch.Tensor, weighting: Weighting) -> torch.Tensor:
    match weighting:
        case "scores":
            return scores
        case "softmax":
            return scores.softmax(1)
        case "sigmoid":
            return scores.sigmoid()


def _in_best_groups(choice_TE: torch.Tensor, groups: ExpertGroupsSpec) -> torch.Tensor:
    """The scores with those outside the best groups masked; of equal groups the lower index is better."""
    by_group = choice_TE.unflatten(1, (groups.count, -1))
    best = by_group.sort(dim=2, descending=True).values[:, :, : groups.best].sum(2)
    kept = best.sort(dim=1, descending=True, stable=True).indices[:, : groups.kept]
    allowed = torch.zeros_like(best).scatter(1, kept, torch.ones_like(best))
    masked: torch.Tensor = by_group.masked_fill(allowed.unsqueeze(2) == 0, 0.0 if groups.zero_outside else float("-inf")).flatten(1)
    return masked
