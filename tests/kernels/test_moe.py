"""The operators of mixtures of experts: exact against their references, each row whatever else is computed."""

import itertools

import pytest
import torch
from routers import ROUTERS, routes_of
from tiers import tiered
from torch import Tensor
from weight_blocks import random_blocks

from engine.kernels.formats import PANEL_QUANTIZERS
from engine.kernels.linear import activations
from engine.kernels.linear.bands import Band, write_bands
from engine.kernels.linear.blocks import FORMATS
from engine.kernels.linear.formats import pack_blocks, pack_dense
from engine.kernels.moe import reference
from engine.kernels.moe.options import RouteOptions

pytestmark = pytest.mark.usefixtures("kernel_library")

ops = torch.ops.engine
OF_GROUPS = [format for format in sorted(FORMATS) if not FORMATS[format].row_activations]
EXPERTS = 64
BIASED = [False, True]


def logits_of(rows: int, experts: int = EXPERTS, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, experts, generator=torch.Generator().manual_seed(seed))


def vector(seed: int, size: int = EXPERTS) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def random_routes(rows: int, experts: int, chosen: int, seed: int = 0) -> Tensor:
    routes: Tensor = ops.route(logits_of(rows, experts, seed), None, None, *RouteOptions(chosen=chosen, score="softmax").arguments)
    return routes


class TestRoute:
    @pytest.mark.parametrize("biased", BIASED)
    @pytest.mark.parametrize("name", ROUTERS)
    def test_choices_and_weights_are_the_references(self, name: str, biased: bool) -> None:
        options, logits = ROUTERS[name], logits_of(10_000)
        bias, scale = (0.1 * vector(1), vector(2).abs() + 0.5) if biased else (None, None)
        routes, expected = (route(logits, bias, scale, *options.arguments) for route in (ops.route, reference.route))
        same = (routes[:, 0] == expected[:, 0]).all(1)
        # Exponentials round otherwise here: choices that differ by less than that may change places.
        assert int((~same).sum()) <= 3
        torch.testing.assert_close(reference.weights_of(routes)[same], reference.weights_of(expected)[same], rtol=2e-6, atol=1e-7)

    @pytest.mark.parametrize("name", ROUTERS)
    def test_of_equals_the_lower_index_is_chosen(self, name: str) -> None:
        options = ROUTERS[name]
        logits = logits_of(50).round()  # many are equal
        routes, expected = (route(logits, None, None, *options.arguments) for route in (ops.route, reference.route))
        assert torch.equal(routes[:, 0], expected[:, 0])
        flat = ops.route(torch.zeros(1, EXPERTS), None, None, *options.arguments)
        assert flat[0, 0].tolist() == [*range(options.chosen), *range(EXPERTS, EXPERTS + options.shared)]

    def test_a_row_is_the_same_in_any_company(self) -> None:
        options = ROUTERS["sigmoid in groups"].arguments
        logits = logits_of(65)
        whole = ops.route(logits, vector(1), None, *options)
        assert all(torch.equal(ops.route(logits[row : row + 1], vector(1), None, *options)[0], whole[row]) for row in range(65))

    def test_all_experts_can_be_chosen(self) -> None:
        routes = ops.route(logits_of(5, 4), None, None, *RouteOptions(chosen=4, score="softmax").arguments)
        assert routes[:, 0].sort().values.tolist() == [[0, 1, 2, 3]] * 5
        torch.testing.assert_close(reference.weights_of(routes).sum(1), torch.ones(5))

    def test_what_is_no_number_chooses_experts_that_there_are(self) -> None:
        """So that nothing after it reads where no weights are; its own row is lost anyway."""
        logits = logits_of(3)
        logits[1] = torch.nan
        logits[2, ::2] = torch.nan
        for options in ROUTERS.values():
            ids = ops.route(logits, None, None, *options.arguments)[:, 0]
            assert int(ids.min()) >= 0
            assert int(ids.max()) < EXPERTS + options.shared
            assert all(len(set(row)) == options.k for row in ids.tolist())
            assert torch.equal(ids[0], ops.route(logits[:1], None, None, *options.arguments)[0, 0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (RouteOptions(chosen=65, score="softmax"), "65 of 64 experts cannot be chosen"),
            (RouteOptions(chosen=1, score="softmax", groups=7), "64 experts cannot be in 7 groups"),
            (RouteOptions(chosen=1, score="softmax", shared=-1), "-1 experts cannot be shared"),
            (RouteOptions(chosen=1, score="guess"), "no router scores by guess"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options: RouteOptions, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            ops.route(logits_of(1), None, None, *options.arguments)

    def test_a_table_has_the_weights_of_the_chosen(self) -> None:
        routes = random_routes(9, EXPERTS, 3)
        assert torch.equal(ops.route_table(routes, EXPERTS), reference.route_table(routes, EXPERTS))


CASES = {
    "one token": routes_of([[2, 0]]),
    "all on one expert": routes_of([[3]] * 7),
    "some without rows": routes_of([[0, 5], [5, 0], [1, 5]]),
    "every expert": routes_of([[3, 1, 0, 2, 5, 4]] * 4),
    "many": routes_of([[row % 6, (row + 1 + row // 6) % 6] for row in range(1, 40) if row // 6 % 6 != 5]),
}
COUNT = 6


class TestPairs:
    @pytest.mark.parametrize("routes", CASES.values(), ids=CASES)
    def test_sorting_and_gathering_are_the_references(self, routes: Tensor) -> None:
        order = ops.sort_routes(routes, COUNT)
        assert torch.equal(order, reference.sort_routes(routes, COUNT))
        for x in (torch.randn(len(routes), 40), torch.randn(len(routes), 8).bfloat16(), activations.quantize(torch.randn(len(routes), 64))):
            assert torch.equal(ops.gather_rows(x, routes, order), reference.gather_rows(x, routes, order))
        x = torch.randn(len(routes), 75)
        assert torch.equal(ops.weigh_rows(x, routes, order), reference.weigh_rows(x, routes, order))

    @pytest.mark.parametrize(("shared", "gated", "residual"), [(False, False, False), (True, False, True), (True, True, True)])
    @pytest.mark.parametrize("routes", CASES.values(), ids=CASES)
    def test_sums_are_the_references_bit_for_bit(self, routes: Tensor, shared: bool, gated: bool, residual: bool) -> None:
        tokens, chosen = routes.shape[0], routes.shape[2]
        generator = torch.Generator().manual_seed(tokens)
        y, first, second = (torch.randn(rows, 75, generator=generator) for rows in (tokens * chosen, tokens, tokens))
        gate = torch.rand(tokens, 1, generator=generator)
        arguments = (y, routes, ops.sort_routes(routes, COUNT), first if shared else None, gate if gated else None)
        for multiplier, weighted in itertools.product((1.0, 0.22), (True, False)):
            rest = (second if residual else None, multiplier, weighted)
            assert torch.equal(ops.combine_experts(*arguments, *rest), reference.combine_experts(*arguments, *rest))

    def test_experts_that_there_are_not_are_refused(self) -> None:
        with pytest.raises(RuntimeError, match="there is no expert 6 of 6"):
            ops.sort_routes(routes_of([[0, 6]]), COUNT)
        routes = routes_of([[0, 1]])
        with pytest.raises(RuntimeError, match="order has 3 numbers"):
            ops.gather_rows(torch.zeros(1, 4), routes, torch.zeros(3, dtype=torch.int32))
        with pytest.raises(RuntimeError, match="x has 2 rows for 1 tokens"):
            ops.weigh_rows(torch.zeros(2, 4), routes, ops.sort_routes(routes, COUNT))


def packed(format: str, experts: int, out_features: int, in_features: int) -> Tensor:
    return pack_blocks(format, random_blocks(format, experts * out_features, in_features, seed=out_features))


class TestExperts:
    """Those of one band or several: what each expert's linear gives for its rows."""

    @pytest.mark.parametrize("routes", CASES.values(), ids=CASES)
    @pytest.mark.parametrize("format", tiered(OF_GROUPS, ("q8_0", "q4_k", "mxfp4", "i4_g32")))
    def test_quantized_ones_are_the_reference_bit_for_bit(self, format: str, routes: Tensor) -> None:
        in_features = max(96, 2 * FORMATS[format].block) if FORMATS[format].block <= 96 else 256
        in_features += -in_features % FORMATS[format].block
        widths = (32, 32) if format != "q4_k" else (32, 16)
        weights = [packed(format, COUNT, width, in_features) for width in widths]
        bands = write_bands([Band(format, width) for width in widths])
        order = ops.sort_routes(routes, COUNT)
        x = torch.randn(routes.shape[0], in_features, generator=torch.Generator().manual_seed(1))
        rows = ops.gather_rows(activations.quantize(x), routes, order)
        bias = vector(3, COUNT * sum(widths))
        arguments = (rows, torch.cat([weight.flatten() for weight in weights]), bias, order, bands, COUNT)
        assert torch.equal(ops.experts_mixed(*arguments), reference.experts_mixed(*arguments))

    @pytest.mark.parametrize("kernel", ["dense", "bf16"])
    @pytest.mark.parametrize("routes", CASES.values(), ids=CASES)
    def test_floats_are_what_their_linear_gives(self, routes: Tensor, kernel: str) -> None:
        generator = torch.Generator().manual_seed(2)
        weight = torch.randn(COUNT, 48, 40, generator=generator).to(torch.bfloat16 if kernel == "bf16" else torch.float32)
        order = ops.sort_routes(routes, COUNT)
        x = torch.randn(routes.shape[0], 40, generator=generator)
        x = activations.QUANTIZERS[PANEL_QUANTIZERS[kernel]](x) if kernel == "bf16" else x
        rows, bias = ops.gather_rows(x, routes, order), vector(4, COUNT * 48)
        out = getattr(ops, f"experts_{kernel}")(rows, pack_dense(weight.flatten(0, 1)), bias, order, 48, COUNT)
        begins = order[: COUNT + 1].tolist()
        linear = getattr(ops, f"linear_{kernel}")
        for expert, (begin, end) in enumerate(itertools.pairwise(begins)):
            own = pack_dense(weight[expert])
            assert all(
                torch.equal(linear(rows[row : row + 1], own, bias[expert * 48 :][:48].clone(), None, 48, 1.0)[0], out[row])
                for row in range(begin, end)
            )

    @pytest.mark.parametrize("format", ["q4_k", "q8_0", "q6_k"])
    def test_a_token_is_the_same_in_any_company(self, format: str) -> None:
        """One row of an expert, a few of them and many: the kernels differ, and no bit does."""
        routes = random_routes(150, 4, 2)
        x = activations.quantize(torch.randn(150, 512, generator=torch.Generator().manual_seed(5)))
        w = packed(format, 4, 48, 512).flatten()

        def computed(rows: slice) -> Tensor:
            own = routes[rows].contiguous()
            order = ops.sort_routes(own, 4)
            y = ops.experts_mixed(ops.gather_rows(x[rows].contiguous(), own, order), w, None, order, f"{format}:48", 4)
            out: Tensor = ops.combine_experts(y, own, order, None, None, None, 1.0, True)
            return out

        whole = computed(slice(0, 150))
        for begin, end in ((0, 1), (7, 8), (149, 150), (20, 24), (30, 90)):
            assert torch.equal(computed(slice(begin, end)), whole[begin:end])

    def test_what_does_not_fit_is_refused(self) -> None:
        routes = CASES["some without rows"]
        order = ops.sort_routes(routes, COUNT)
        rows = ops.gather_rows(activations.quantize(torch.randn(3, 64)), routes, order)
        w = packed("q8_0", COUNT, 32, 64).flatten()
        with pytest.raises(RuntimeError, match=r"w has \d+ bytes, not"):
            ops.experts_mixed(rows, w[:-1].contiguous(), None, order, "q8_0:32", COUNT)
        with pytest.raises(RuntimeError, match="whole panels, not 24 outputs"):
            ops.experts_mixed(rows, w, None, order, "q8_0:24", COUNT)
        with pytest.raises(RuntimeError, match="numbers for 7 experts"):
            ops.experts_mixed(rows, w, None, order, "q8_0:32", COUNT + 1)
        with pytest.raises(RuntimeError, match="no band can have the format w8a8"):
            ops.experts_mixed(rows, w, None, order, "w8a8:32", COUNT)
