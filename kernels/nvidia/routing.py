"""What stands around the products of a mixture's experts: the choice, the order of pairs by expert, and the sum of what they give.

moe/reference.py says what each computes. All are bound by the latency of a launch at the few rows of a decode step. Every choice is made in
float32, ties go to the lower index, and an order is made without atomics: each expert looks through all choices for its own, in order. At
2,048 tokens, 8 of 128 experts each, that reads 16 MB out of the L2 cache.
"""

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl

from ..moe.options import RouteOptions
from .activations import sigmoid, softplus
from .context import Context, Emit
from .launch import Launch, Tensor, cdiv

_PAIRS = 1024
"""Of choices, looked through at a time."""
_BLOCK = 1024


@triton.jit
def scored(x, there, SCORE: tl.constexpr):
    """What a router makes of logits [G, I]; those that are not there count as minus infinity."""
    if SCORE == "softmax":
        powers = tl.where(there, tl.exp(x - tl.max(tl.max(tl.where(there, x, float("-inf")), 1), 0)), 0.0)
        x = powers / tl.sum(tl.sum(powers, 1), 0)
    elif SCORE == "sigmoid":
        x = sigmoid(x)
    elif SCORE == "sqrt_softplus":
        x = tl.sqrt(softplus(x))
    else:
        tl.static_assert(SCORE == "identity" or SCORE == "scores")
    return x


@triton.jit
def best_of(values, free, index):
    """The largest of the values [G, I] that are free, and the lowest index that has it."""
    most = tl.max(tl.max(tl.where(free, values, float("-inf")), 1), 0)
    return most, tl.min(tl.min(tl.where(free & (values == most), index, 0x7FFFFFFF), 1), 0)


@triton.jit
def in_best_groups(choice, there, g, i, KEPT: tl.constexpr, BEST: tl.constexpr):
    """Whether each of [G, I] is in one of the KEPT groups whose BEST largest choices have the largest sums."""
    members = tl.where(there, choice, float("-inf"))
    sums = tl.max(members, 1)[:, None]
    if BEST == 2:
        first = tl.min(tl.where(members == sums, i, 0x7FFFFFFF), 1)[:, None]
        sums += tl.max(tl.where(i == first, float("-inf"), members), 1)[:, None]
    free = tl.max(there.to(tl.int32), 1)[:, None] > 0
    kept = g < 0
    for _ in range(KEPT):
        _, best = best_of(sums, free, g)
        kept = kept | (g == best)
        free = free & (g != best)
    return kept


@triton.jit
def route_kernel(
    logits, choice_bias, expert_scale, routes, stride, EXPERTS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_I: tl.constexpr, CHOSEN: tl.constexpr, BLOCK_K: tl.constexpr, SCORE: tl.constexpr, KEPT: tl.constexpr, BEST: tl.constexpr,
    ZERO_OUTSIDE: tl.constexpr, WEIGHTING: tl.constexpr, NORMALIZED: tl.constexpr, EPS: tl.constexpr, LEAST: tl.constexpr,
    SCALE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """One token. Experts are [G, I]: as many groups as there are, and the experts of each."""
    token = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G)[:, None]
    i = tl.arange(0, BLOCK_I)[None, :]
    e = g * (EXPERTS // GROUPS) + i
    there = (g < GROUPS) & (i < EXPERTS // GROUPS)
    scores = scored(tl.load(logits + token * stride + e, mask=there, other=0.0), there, SCORE)
    choice = scores
    if choice_bias is not None:
        choice += tl.load(choice_bias + e, mask=there, other=0.0)
    choice = tl.where(choice == choice, choice, float("-inf"))  # what is no number is chosen last
    if GROUPS > 1:
        choice = tl.where(in_best_groups(choice, there, g, i, KEPT, BEST), choice, 0.0 if ZERO_OUTSIDE else float("-inf"))
    j = tl.arange(0, BLOCK_K)
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    weights = tl.zeros((BLOCK_K,), tl.float32)
    free = there
    for place in range(CHOSEN):
        _, best = best_of(choice, free, e)
        its = e == best
        chosen = tl.where(j == place, best, chosen)
        weights = tl.where(j == place, tl.sum(tl.sum(tl.where(its & there, scores, 0.0), 1), 0), weights)
        free = free & ~its
    of_chosen = j < CHOSEN
    weights = tl.reshape(scored(weights[None, :], of_chosen[None, :], WEIGHTING), (BLOCK_K,))
    if NORMALIZED:
        weights = weights / tl.maximum(tl.sum(tl.where(of_chosen, weights, 0.0), 0) + EPS, LEAST)
    weights = weights * SCALE
    if expert_scale is not None:
        weights = weights * tl.load(expert_scale + chosen, mask=of_chosen, other=0.0)
    there = j < CHOSEN + SHARED
    chosen = tl.where(of_chosen, chosen, EXPERTS + j - CHOSEN)
    weights = tl.where(of_chosen, weights, 1.0)
    routes += token * 2 * (CHOSEN + SHARED)
    tl.store(routes + j, chosen, mask=there)
    tl.store(routes + CHOSEN + SHARED + j, weights.to(tl.int32, bitcast=True), mask=there)


@triton.jit
def sort_routes_kernel(routes, order, pairs, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    """One expert: where its pairs begin is how many pairs have lower ones, and there they lie in the order of tokens."""
    expert = tl.program_id(0)
    tokens = order + EXPERTS + 1
    places = tokens + pairs
    lower = 0
    for done in range(0, pairs, BLOCK):
        p = done + tl.arange(0, BLOCK)
        lower += tl.sum((tl.load(routes + p // CHOSEN * (2 * CHOSEN) + p % CHOSEN, mask=p < pairs, other=EXPERTS) < expert).to(tl.int32), 0)
    tl.store(order + expert, lower)
    tl.store(order + EXPERTS, pairs)
    for done in range(0, pairs, BLOCK):
        p = done + tl.arange(0, BLOCK)
        its = tl.load(routes + p // CHOSEN * (2 * CHOSEN) + p % CHOSEN, mask=p < pairs, other=EXPERTS) == expert
        place = lower + tl.cumsum(its.to(tl.int32), 0) - 1
        tl.store(tokens + place, p // CHOSEN, mask=its)
        tl.store(places + p, place, mask=its)
        lower += tl.sum(its.to(tl.int32), 0)


@triton.jit
def equal_order_kernel(order, pairs, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK numbers of the order of pairs that lie by expert already."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = (i - EXPERTS - 1) % pairs
    tl.store(order + i, tl.where(i <= EXPERTS, i * (pairs // EXPERTS), place), mask=i < EXPERTS + 1 + 2 * pairs)


@triton.jit
def weigh_rows_kernel(x, routes, places, out, features, x_stride, out_stride, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK features of one token, times the weight of one of its experts, where that pair lies."""
    pair = tl.program_id(0)
    token = (pair // CHOSEN).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(routes + token * 2 * CHOSEN + CHOSEN + pair % CHOSEN).to(tl.float32, bitcast=True)
    values = weight * tl.load(x + token * x_stride + h, mask=h < features, other=0.0).to(tl.float32)
    tl.store(out + tl.load(places + pair).to(tl.int64) * out_stride + h, values.to(out.dtype.element_ty), mask=h < features)


@triton.jit
def combine_experts_kernel(
    y, routes, places, shared, gate, residual, out, features, y_stride, shared_stride, gate_stride, residual_stride, out_stride,
    CHOSEN: tl.constexpr, MULTIPLIER: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK features of one token: its experts' rows, weighted or not, in their order, then what is shared. places: as in orders."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = h < features
    places += token * CHOSEN
    weights = routes + token * 2 * CHOSEN + CHOSEN
    sums = tl.zeros((BLOCK,), tl.float32)
    for j in range(CHOSEN):
        row = tl.load(places + j).to(tl.int64)
        values = tl.load(y + row * y_stride + h, mask=inside, other=0.0).to(tl.float32)
        sums += tl.load(weights + j).to(tl.float32, bitcast=True) * values if WEIGHTED else values
    if shared is not None:
        added = tl.load(shared + token * shared_stride + h, mask=inside, other=0.0).to(tl.float32)
        if gate is not None:
            added = added * tl.load(gate + token * gate_stride).to(tl.float32)
        sums += added
    if MULTIPLIER != 1.0:
        sums = sums * MULTIPLIER
    if residual is not None:
        sums += tl.load(residual + token * residual_stride + h, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * out_stride + h, sums.to(out.dtype.element_ty), mask=inside)


def route(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """logits [T, E] float32, choice_bias [E]?, expert_scale [E]?, the numbers of RouteOptions -> int32 [T, 2, k]."""
    logits, choice_bias, expert_scale, *numbers = arguments
    options, experts = RouteOptions.of(numbers), int(logits.shape[1])
    tensors = {"choice_bias": choice_bias, "expert_scale": expert_scale}
    return [
        Launch(
            function=route_kernel,
            grid=(logits.shape[0], 1, 1),
            arguments={"logits": logits, "routes": out, "stride": logits.strides[0], **_present(tensors)},
            constants={
                **_absent(tensors),
                "EXPERTS": experts,
                "GROUPS": options.groups,
                "BLOCK_G": triton.next_power_of_2(options.groups),
                "BLOCK_I": triton.next_power_of_2(experts // options.groups),
                "CHOSEN": options.chosen,
                "BLOCK_K": triton.next_power_of_2(options.k),
                "SCORE": options.score,
                "KEPT": options.kept,
                "BEST": options.best,
                "ZERO_OUTSIDE": options.zero_outside,
                "WEIGHTING": options.weighting,
                "NORMALIZED": options.normalized,
                "EPS": options.eps,
                "LEAST": options.least,
                "SCALE": options.scale,
                "SHARED": options.shared,
            },
        )
    ]


def sort_routes(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """routes [T, 2, k], experts -> int32 [E + 1 + 2 P]."""
    routes, experts = arguments
    chosen = int(routes.shape[2])
    constants = {"EXPERTS": experts, "CHOSEN": chosen, "BLOCK": _PAIRS}
    operands = {"routes": routes, "order": out, "pairs": routes.shape[0] * chosen}
    return [Launch(function=sort_routes_kernel, grid=(experts, 1, 1), arguments=operands, constants=constants)]


def equal_order(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """x [P, K], experts -> int32 [E + 1 + 2 P]."""
    x, experts = arguments
    grid = (cdiv(out.shape[0], _BLOCK), 1, 1)
    operands = {"order": out, "pairs": x.shape[0]}
    return [Launch(function=equal_order_kernel, grid=grid, arguments=operands, constants={"EXPERTS": experts, "BLOCK": _BLOCK})]


def weigh_rows(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """x [T, H], routes, order -> [P, H]."""
    x, routes, order = arguments
    chosen, features = int(routes.shape[2]), int(x.shape[1])
    tensors = {"x": x, "routes": routes, "places": _places(routes, order), "out": out}
    return [
        Launch(
            function=weigh_rows_kernel,
            grid=(routes.shape[0] * chosen, cdiv(features, _BLOCK), 1),
            arguments={**tensors, "features": features, "x_stride": x.strides[0], "out_stride": out.strides[0]},
            constants={"CHOSEN": chosen, "BLOCK": _BLOCK},
        )
    ]


def combine_experts(arguments: tuple[Any, ...], out: Tensor, context: Context) -> list[Launch]:
    """y [P, H], routes, order, shared [T, H]?, gate [T, 1]?, residual [T, H]?, multiplier, weighted -> [T, H]."""
    y, routes, order, shared, gate, residual, multiplier, weighted = arguments
    chosen, features = int(routes.shape[2]), int(y.shape[1])
    tensors = {"shared": shared, "gate": gate, "residual": residual}
    strides = {f"{name}_stride": 0 if tensor is None else tensor.strides[0] for name, tensor in {"y": y, "out": out, **tensors}.items()}
    return [
        Launch(
            function=combine_experts_kernel,
            grid=(routes.shape[0], cdiv(features, _BLOCK), 1),
            arguments={
                "y": y,
                "routes": routes,
                "places": _places(routes, order),
                "out": out,
                "features": features,
                **strides,
                **_present(tensors),
            },
            constants={**_absent(tensors), "CHOSEN": chosen, "MULTIPLIER": float(multiplier), "WEIGHTED": weighted, "BLOCK": _BLOCK},
        )
    ]


def _places(routes: Tensor, order: Tensor) -> Tensor:
    """Where the pairs of routes lie: the last numbers of an order."""
    return replace(order, offset=order.offset + order.shape[0] - routes.shape[0] * routes.shape[2])


def _present(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _absent(tensors: dict[str, Tensor | None]) -> dict[str, None]:
    return {name: None for name, tensor in tensors.items() if tensor is None}


EMITTERS: dict[str, Emit] = {
    "route": route,
    "sort_routes": sort_routes,
    "equal_order": equal_order,
    "weigh_rows": weigh_rows,
    "combine_experts": combine_experts,
}
