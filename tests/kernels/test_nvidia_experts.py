"""Mixtures of experts for NVIDIA, interpreted: the choice, the order, the grouped products and their sum."""

from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch
from routers import ROUTERS, routes_of
from tiers import tiered
from torch import Tensor
from triton_launches import H200, Call, Given, contiguous_strides, emit, evaluate, holds, interpreter, problems_of, worst_error
from weight_blocks import weight_like_blocks

from engine.kernels.formats import ROW_FORMATS
from engine.kernels.linear.blocks import FORMATS
from engine.kernels.moe import reference as moe
from engine.kernels.moe.options import RouteOptions
from engine.kernels.nvidia import linear, reference
from engine.kernels.nvidia.choices import SIZE
from engine.kernels.nvidia.experts import Experts, experts_problem
from engine.kernels.nvidia.formats import pack_rows
from engine.kernels.nvidia.fp8 import quantize_fp8
from engine.kernels.nvidia.launch import Tensor as Place
from engine.kernels.nvidia.packed_rows import FP8_LAYOUTS

EXPERTS = 40
"""No power of two; of eight groups, five each."""
COUNT = 6
ORDER = 4
"""Sums of the same float32 products in another order may be this much worse than torch's."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def route(logits: Tensor, bias: Tensor | None, scale: Tensor | None, options: RouteOptions) -> Tensor:
    given = [None if each is None else Given(each) for each in (bias, scale)]
    arguments = (Given(logits, ("T", logits.shape[1])), *given, *options.arguments)
    call = Call(operator="route", arguments=arguments, shape=("T", 2, options.k), dtype="int32", dims={"T": len(logits)})
    return interpreter().run(call)[0]


def sort_routes(routes: Tensor, experts: int) -> Tensor:
    tokens, chosen = routes.shape[0], routes.shape[2]
    call = Call(
        operator="sort_routes",
        arguments=(Given(routes, ("T", 2, chosen)), experts),
        shape=("N",),
        dtype="int32",
        dims={"T": tokens, "N": experts + 1 + 2 * tokens * chosen},
    )
    return interpreter().run(call)[0]


def random_routes(tokens: int, chosen: int = 2, experts: int = COUNT) -> Tensor:
    return moe.route(numbers(tokens, experts, seed=tokens), None, None, *RouteOptions(chosen=chosen, score="softmax").arguments)


class TestRoute:
    @pytest.mark.parametrize("biased", [False, True])
    @pytest.mark.parametrize("name", ROUTERS)
    def test_choices_and_weights_are_the_references(self, name: str, biased: bool) -> None:
        options, logits = ROUTERS[name], 3 * numbers(40, EXPERTS)
        bias, scale = (0.1 * numbers(EXPERTS, seed=1), numbers(EXPERTS, seed=2).abs() + 0.5) if biased else (None, None)
        routes, expected = route(logits, bias, scale, options), moe.route(logits, bias, scale, *options.arguments)
        assert torch.equal(routes[:, 0], expected[:, 0])
        torch.testing.assert_close(moe.weights_of(routes), moe.weights_of(expected), rtol=4e-6, atol=1e-7)

    @pytest.mark.parametrize("name", ROUTERS)
    def test_of_equals_the_lower_index_is_chosen(self, name: str) -> None:
        options, logits = ROUTERS[name], torch.cat((3 * numbers(16, EXPERTS), torch.zeros(1, EXPERTS))).round()
        assert torch.equal(route(logits, None, None, options)[:, 0], moe.route(logits, None, None, *options.arguments)[:, 0])

    def test_what_is_no_number_chooses_experts_that_there_are(self) -> None:
        logits = numbers(3, EXPERTS)
        logits[1], logits[2, ::2] = torch.nan, torch.nan
        for options in ROUTERS.values():
            ids = route(logits, None, None, options)[:, 0]
            assert int(ids.min()) >= 0
            assert int(ids.max()) < EXPERTS + options.shared
            assert all(len(set(row)) == options.k for row in ids.tolist())

    def test_all_experts_can_be_chosen(self) -> None:
        ids = route(numbers(5, 3), None, None, RouteOptions(chosen=3, score="softmax"))[:, 0]
        assert ids.sort().values.tolist() == [[0, 1, 2]] * 5


ROUTES = {
    "one token": routes_of([[2, 0]]),
    "all on one expert": routes_of([[3]] * 27),
    "some without rows": routes_of([[0, 5], [5, 0], [1, 5]]),
    "every expert": routes_of([[3, 1, 0, 2, 5, 4]] * 4),
    "many": random_routes(540),
}


@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES)
def test_pairs_are_sorted_by_expert_and_token(routes: Tensor) -> None:
    assert torch.equal(sort_routes(routes, COUNT), moe.sort_routes(routes, COUNT))


@pytest.mark.parametrize(("experts", "rows"), [(1, 1), (4, 3), (128, 20)])
def test_pairs_that_lie_by_expert_are_in_order(experts: int, rows: int) -> None:
    x = numbers(experts * rows, 8).bfloat16()
    dims = {"P": len(x), "N": experts + 1 + 2 * len(x)}
    call = Call(operator="equal_order", arguments=(Given(x, ("P", 8)), experts), shape=("N",), dtype="int32", dims=dims)
    assert torch.equal(interpreter().run(call)[0], moe.equal_order(x, experts))


@pytest.mark.parametrize(("shared", "gated", "residual"), [(False, False, False), (True, False, True), (True, True, True)])
@pytest.mark.parametrize(("multiplier", "weighted"), [(1.0, True), (0.22, True), (1.0, False)])
def test_sums_are_weighted_in_order(shared: bool, gated: bool, residual: bool, multiplier: float, weighted: bool) -> None:
    routes = random_routes(9, 3)
    order, features = moe.sort_routes(routes, COUNT), 1100
    y, first, second = (numbers(rows, features, seed=rows).bfloat16() for rows in (27, 9, 9))
    gate = torch.rand(9, 1, generator=torch.Generator().manual_seed(1)).bfloat16()
    given = (y, routes, order, first if shared else None, gate if gated else None, second if residual else None)
    rows = (("P", features), ("T", 2, 3), None, ("T", features), ("T", 1), ("T", features))
    arguments = [None if each is None else Given(each, shape) for each, shape in zip(given, rows, strict=True)]
    arguments[0] = Given(y, (27, features))
    call = Call(
        operator="combine_experts", arguments=(*arguments, multiplier, weighted), shape=("T", features), dtype="float32", dims={"T": 9}
    )
    wide: Any = [each.double() if each is not None and each.dtype == torch.bfloat16 else each for each in given]
    exact = moe.combine_experts(*[*wide, multiplier, weighted])
    assert worst_error(interpreter().run(call)[0], exact) <= 1e-6


def test_rows_are_weighed_before_their_experts() -> None:
    routes = random_routes(9, 3)
    order, x = moe.sort_routes(routes, COUNT), numbers(9, 1100).bfloat16()
    arguments = (Given(x, ("T", 1100)), Given(routes, ("T", 2, 3)), Given(order))
    call = Call(operator="weigh_rows", arguments=arguments, shape=(27, 1100), dtype="float32", dims={"T": 9})
    assert torch.equal(interpreter().run(call)[0], moe.weigh_rows(x.float(), routes, order))


def weights_of(kernel: str, features: int, inputs: int) -> Tensor:
    if kernel == "dense":
        return numbers(features, inputs, seed=1).bfloat16()
    if kernel in FP8_LAYOUTS:
        return quantize_fp8(kernel, numbers(features, inputs, seed=1))
    return pack_rows(kernel, weight_like_blocks(kernel, features, inputs, seed=1))


def experts(kernel: str, x: Tensor, w: Tensor, bias: Tensor | None, order: Tensor, features: int, parts: int, gather: bool) -> Call:
    """Of pairs P, which the policy must know as a multiple of the tokens T."""
    pairs = (len(order) - COUNT - 1) // 2
    given = (Given(x, ("T" if gather else "P", x.shape[1])), Given(w), None if bias is None else Given(bias), Given(order))
    return Call(
        operator=f"experts_rows_{kernel}",
        arguments=(*given, parts * features, COUNT, parts, gather),
        shape=("P", parts * features),
        dtype="float32",
        dims={"P": pairs, "T": len(x)},
    )


def place(*shape: Any, dtype: str) -> Place:
    return Place(buffer="memory", dtype=dtype, shape=shape, strides=contiguous_strides(shape))


TOKENS = {"few": 9, "more than a tile of few rows": 40, "small tiles": 150, "large tiles": 260}
"""By what is launched for two of six experts each."""
KERNELS = ("dense", "q4_k", "q8_0", "mxfp4", "w4_g64", "i5_g32", *FP8_LAYOUTS)


class TestExperts:
    @pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
    @pytest.mark.parametrize("kernel", tiered(("dense", *ROW_FORMATS, *FP8_LAYOUTS), KERNELS))
    def test_each_pair_is_the_linear_of_its_expert(self, kernel: str, tokens: int) -> None:
        """Rows of tokens, as for the first products, of which two are one call; and rows of pairs, as for the last."""
        features, inputs = 40, 256 if kernel in FP8_LAYOUTS else max(96, FORMATS[kernel].block if kernel in FORMATS else 0)
        order = moe.sort_routes(random_routes(tokens), COUNT)
        for parts, gather in ((2, True), (1, False)):
            x = numbers(tokens if gather else 2 * tokens, inputs).bfloat16()
            x = quantize_fp8(kernel, x) if kernel in FP8_LAYOUTS else x
            w, bias = weights_of(kernel, parts * COUNT * features, inputs), numbers(parts * COUNT * features, seed=2)
            actual = interpreter().run(experts(kernel, x, w, bias, order, features, parts, gather))[0]
            arguments = (w, bias, order, parts * features, COUNT, parts, gather)
            expected = reference.experts_rows(kernel, x, *arguments)
            rounding = 2.0**-8 if kernel in ROW_FORMATS else 2.0**-20  # few rows multiply weights that are not rounded
            assert worst_error(actual, expected.double()) <= rounding * float(expected.abs().max())

    @pytest.mark.parametrize("name", ["all on one expert", "some without rows", "one token", "every expert"])
    @pytest.mark.parametrize("kernel", ["dense", "q4_k", "fp8_block"])
    def test_whatever_is_chosen(self, kernel: str, name: str) -> None:
        routes = ROUTES[name]
        order, tokens = moe.sort_routes(routes, COUNT), routes.shape[0]
        x = numbers(tokens, 256).bfloat16()
        x = quantize_fp8(kernel, x) if kernel in FP8_LAYOUTS else x
        w = weights_of(kernel, COUNT * 24, 256)
        actual = interpreter().run(experts(kernel, x, w, None, order, 24, 1, True))[0]
        expected = reference.experts_rows(kernel, x, w, None, order, 24, COUNT, 1, True)
        assert worst_error(actual, expected.double()) <= 2.0**-8 * float(expected.abs().max())

    @pytest.mark.parametrize("kernel", ["dense", "q4_k", "fp8_channel"])
    def test_a_pair_is_the_same_in_any_company_of_its_size(self, kernel: str) -> None:
        """Rows beside it may be no numbers, and lie with any expert: within what is launched for as many, no bit changes."""
        tokens = 40
        routes = random_routes(tokens)
        x = numbers(tokens, 256).bfloat16()
        w = weights_of(kernel, COUNT * 24, 256)
        others = torch.full_like(x, torch.nan)
        others[7] = x[7]
        moved = random_routes(tokens + 1)[1:].contiguous()
        moved[7] = routes[7]

        def rows(x: Tensor, routes: Tensor) -> Tensor:
            order = moe.sort_routes(routes, COUNT)
            given = quantize_fp8(kernel, x) if kernel in FP8_LAYOUTS else x
            out = interpreter().run(experts(kernel, given, w, None, order, 24, 1, True))[0]
            return out[order[-2 * tokens :].view(tokens, 2)[7].long()]

        assert torch.equal(rows(x, routes), rows(others, moved))

    @pytest.mark.parametrize("kernel", ["dense", "q8_0", "fp8_channel"])
    def test_every_candidate_computes_the_same(self, kernel: str) -> None:
        """Each is tried whatever the size: the grid of few rows serves any number of them."""
        tokens = 9
        order = moe.sort_routes(random_routes(tokens), COUNT)
        x = numbers(tokens, 256).bfloat16()
        x = quantize_fp8(kernel, x) if kernel in FP8_LAYOUTS else x
        given = experts(kernel, x, weights_of(kernel, COUNT * 40, 256), None, order, 40, 1, True)
        expected = interpreter().run(given)[0]
        (problem,) = problems_of(given)
        assert {each.use for each in problem.policy} < set(problem.candidates)
        for name in problem.candidates:
            actual = interpreter().run(replace(given, use=name))[0]
            assert worst_error(actual, expected.double()) <= 2.0**-8 * float(expected.abs().max()), name

    def test_what_a_tuner_is_told(self) -> None:
        tokens = sympy.Symbol("T", integer=True, positive=True)
        few, many, chosen = (
            place(tokens, 64, dtype="bfloat16"),
            place(4 * tokens, 64, dtype="bfloat16"),
            place(COUNT + 1 + 8 * tokens, dtype="int32"),
        )
        for x, gather in ((few, True), (many, False)):
            operands = Experts(
                x=x,
                w=place(COUNT * 32, 64, dtype="bfloat16"),
                bias=None,
                order=chosen,
                out=place(4 * tokens, 32, dtype="float32"),
                in_features=64,
                experts=COUNT,
                parts=1,
                gather=gather,
            )
            problem = experts_problem(linear.FAMILY, operands, H200.multiprocessors)
            assert problem.name == f"experts dense 1x32x64{' gathered' if gather else ''}, 4 of 6"
            assert (problem.size, problem.dimensions) == (tokens, {tokens: SIZE})
            assert [each.up_to for each in problem.policy] == [16 * 6 // 4, 64 * 6 // 4, None]
            assert [(each.name, each.routes) for each in problem.operands if each.content == "routes"] == [("order", (6, 4))]

    def test_every_number_of_pairs_has_one_launch_and_a_tile_for_each(self) -> None:
        """The largest grid that pairs can need: one tile for each expert that has any, and one more for every tile that is full."""
        order = moe.sort_routes(random_routes(2), COUNT)
        call = experts("q4_k", numbers(2, 256).bfloat16(), weights_of("q4_k", COUNT * 24, 256), None, order, 24, 1, True)
        launches, _, _ = emit(call)
        for pairs in (1, 2, 4, 24, 25, 96, 97, 384, 385, 5000):
            (launch,) = (launch for launch in launches if holds(launch, {"P": pairs, "T": pairs}))
            tiles, m, some = evaluate(launch.grid[1], {"P": pairs, "T": pairs}), launch.constants["BLOCK_M"], min(COUNT, pairs)
            worst = some - 1 + -(-(pairs - some + 1) // m)  # all that is left with one expert
            assert worst <= tiles <= pairs


def test_a_router_is_multiplied_in_float32() -> None:
    """By weights that bfloat16 does not hold; of one row and of many."""
    w = numbers(COUNT, 256, seed=1)
    for tokens in (1, 20, 70):
        x = numbers(tokens, 256).bfloat16()
        arguments = (Given(x, ("T", 256)), Given(w), None, None, COUNT, 1.0)
        call = Call(operator="logits_rows_dense", arguments=arguments, shape=("T", COUNT), dtype="float32", dims={"T": tokens})
        assert worst_error(interpreter().run(call)[0], x.double() @ w.double().T) <= 1e-5 * 16
