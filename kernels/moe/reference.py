"""What the operators of mixtures of experts compute, in plain PyTorch.

route           logits [T, E] float32 -> routes int32 [T, 2, k]: the experts of each token, the best first, and the bits of their weights;
                among the k are those that every token shares, last
sort_routes     routes -> order int32 [E + 1 + 2 P] of P = T * k pairs of token and expert, sorted by expert, then by token: where the pairs
                of each expert begin, and where the last ones end; the token of each sorted pair; the place of each pair of `routes`
equal_order     x [E * n, K] of rows that lie by expert, n of each -> the order of such pairs, as sort_routes has it
gather_rows     x [T, ...] -> [P, ...]: the row of each sorted pair's token
weigh_rows      x [T, H] -> [P, H]: the same times the pair's weight
experts_*       x [P, K] of sorted pairs, each times the weights of its expert -> [P, N]
combine_experts y [P, H] -> [T, H]: each token's k rows, weighted unless they were before, and added in the order of `routes`

The rows of a pair depend on its token alone: not on what else is computed, nor on how many rows an expert has.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..formats import GROUP
from ..linear import reference
from ..linear.bands import read_bands
from ..linear.packed import packed_shape
from .options import RouteOptions


def route(logits: Tensor, choice_bias: Tensor | None, expert_scale: Tensor | None, *options: int | float | str | bool) -> Tensor:
    """logits [T, E], choice_bias and expert_scale [E], all float32; options: those of RouteOptions, in order -> int32 [T, 2, k]."""
    given = RouteOptions.of(options)
    scores = _SCORES[given.score](logits)
    choice = scores if choice_bias is None else scores + choice_bias
    if given.groups > 1:
        by_group = choice.unflatten(1, (given.groups, -1))
        best = by_group.sort(dim=2, descending=True).values[:, :, : given.best].sum(2)
        kept = best.sort(dim=1, descending=True, stable=True).indices[:, : given.kept]
        allowed = torch.zeros_like(best).scatter(1, kept, 1.0)
        choice = torch.where(allowed[:, :, None] > 0, by_group, 0.0 if given.zero_outside else float("-inf")).flatten(1)
    chosen = choice.sort(dim=1, descending=True, stable=True).indices[:, : given.chosen]
    weights = _SCORES[given.weighting](scores.gather(1, chosen))
    if given.normalized:
        weights = weights / (weights.sum(1, keepdim=True) + given.eps).clamp(min=given.least)
    weights = weights * given.scale
    if expert_scale is not None:
        weights = weights * expert_scale[chosen]
    if given.shared:
        behind = torch.arange(given.shared) + logits.shape[1]
        chosen = torch.cat((chosen, behind.expand(len(chosen), -1)), dim=1)
        weights = torch.cat((weights, torch.ones(len(weights), given.shared)), dim=1)
    return torch.stack((chosen.int(), weights.contiguous().view(torch.int32)), dim=1)


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: torch.nn.functional.softplus(logits).sqrt(),
    "identity": lambda logits: logits,
    "scores": lambda scores: scores,
}


def weights_of(routes: Tensor) -> Tensor:
    """Of each token's experts, float32 [T, k]."""
    return routes[:, 1].contiguous().view(torch.float32)


def route_table(routes: Tensor, experts: int) -> Tensor:
    """The weights as a table [T, E], zero where an expert is not chosen."""
    table = torch.zeros(routes.shape[0], experts)
    return table.scatter(1, routes[:, 0].long(), weights_of(routes))


def sort_routes(routes: Tensor, experts: int) -> Tensor:
    """int32 [T, 2, k] -> int32 [E + 1 + 2 P]"""
    pairs = routes[:, 0].flatten()
    sorted_pairs = pairs.sort(stable=True).indices
    ends = torch.bincount(pairs, minlength=experts).cumsum(0)
    place = torch.empty_like(sorted_pairs).scatter(0, sorted_pairs, torch.arange(len(pairs)))
    return torch.cat((ends.new_zeros(1), ends, sorted_pairs // routes.shape[2], place)).int()


def equal_order(x: Tensor, experts: int) -> Tensor:
    """x [P, K] -> int32 [E + 1 + 2 P]"""
    rows = len(x)
    begins, places = torch.arange(experts + 1) * (rows // experts), torch.arange(rows)
    return torch.cat((begins, places, places)).int()


def gather_rows(x: Tensor, routes: Tensor, order: Tensor) -> Tensor:
    """x [T, ...] -> [P, ...]"""
    return x[_parts(routes, order)[1].long()]


def weigh_rows(x: Tensor, routes: Tensor, order: Tensor) -> Tensor:
    """x [T, H] float32 -> [P, H]"""
    _, tokens, places = _parts(routes, order)
    weights = torch.empty(len(places)).scatter(0, places.long(), weights_of(routes).flatten())
    return x[tokens.long()] * weights[:, None]


def combine_experts(
    y: Tensor,
    routes: Tensor,
    order: Tensor,
    shared: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    multiplier: float,
    weighted: bool,
) -> Tensor:
    """y [P, H], shared and residual [T, H], gate [T, 1] -> (sum of weights * y + gate * shared) * multiplier + residual, every operation
    rounded on its own, [T, H] float32. weighted: whether weights are those of routes; else 1."""
    places = _parts(routes, order)[2].view(routes.shape[0], -1).long()
    rows = y[places]
    if weighted:
        rows = rows * weights_of(routes)[:, :, None]
    out = rows[:, 0]
    for index in range(1, routes.shape[2]):
        out = out + rows[:, index]
    if shared is not None:
        out = out + (shared if gate is None else gate * shared)
    out = out * multiplier
    return out if residual is None else out + residual


def experts(kernel: str, x: Tensor, w: Tensor, bias: Tensor | None, order: Tensor, out_features: int, count: int) -> Tensor:
    """x [P, K] float32, or bfloat16 as of round_bf16; w: of all experts, packed as one [count * N, K]; bias [count * N] -> [P, N]."""
    return _each(x, order, count, out_features, _linear_of(kernel, w.unflatten(0, (count, -1)), bias, out_features))


def experts_mixed(x: Tensor, w: Tensor, bias: Tensor | None, order: Tensor, bands: str, count: int) -> Tensor:
    """x [P, G, 48] quantized; w uint8: of every band the weights of all experts, one band after another; bias likewise -> [P, N]."""
    outs, byte, place = [], 0, 0
    for band in read_bands(bands):
        shape = packed_shape(band.format, band.out_features, x.shape[1] * GROUP)
        size = torch.Size(shape).numel()
        weights = w.flatten()[byte : byte + count * size].view(count, *shape)
        part = None if bias is None else bias[place : place + count * band.out_features]
        outs.append(_each(x, order, count, band.out_features, _linear_of(band.format, weights, part, band.out_features)))
        byte, place = byte + count * size, place + count * band.out_features
    return torch.cat(outs, dim=1)


def _linear_of(kernel: str, weights: Tensor, bias: Tensor | None, out_features: int) -> Callable[[Tensor, int], Tensor]:
    """The linear of an expert, of some rows. weights: packed, of each expert."""
    return lambda rows, expert: reference.linear(kernel, rows, weights[expert], _of(bias, expert, out_features), None, out_features, 1.0)


def _each(x: Tensor, order: Tensor, count: int, out_features: int, linear: Callable[[Tensor, int], Tensor]) -> Tensor:
    begins: Sequence[int] = order[: count + 1].tolist()
    outs = [linear(x[begin:end], expert) for expert, (begin, end) in enumerate(itertools.pairwise(begins)) if end > begin]
    return torch.cat(outs) if outs else torch.empty(0, out_features)


def _of(bias: Tensor | None, expert: int, out_features: int) -> Tensor | None:
    return None if bias is None else bias[expert * out_features : (expert + 1) * out_features]


def _parts(routes: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where each expert's pairs begin, tokens by sorted pair, places by pair."""
    pairs = routes.shape[0] * routes.shape[2]
    begins, tokens, places = order.split((len(order) - 2 * pairs, pairs, pairs))
    return begins, tokens, places
