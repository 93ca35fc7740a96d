"""route_experts, group_experts, combine_experts, join_shared_expert: what they find in the plain module, and that it computes the same."""

from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from traced_graphs import interpret, operators, pack, trace

from engine.kernels.linear.packed import Layout
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.moe import BranchNorms, ExpertGroupsSpec, MoE, MoESpec, RouterSpec
from engine.models.parts.norm import NormSpec
from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.capture_routes import capture_routes
from engine.passes.combine_experts import combine_experts
from engine.passes.eliminate_no_ops import eliminate_no_ops
from engine.passes.group_experts import group_experts
from engine.passes.join_shared_expert import join_shared_expert
from engine.passes.merge_sibling_linears import merge_sibling_linears
from engine.passes.rewrite import call_like
from engine.passes.route_experts import route_experts
from engine.passes.select_rows_early import select_rows_early

HIDDEN, TOKENS = 64, 11
NORM = NormSpec(eps=1e-6)
PLAIN = MoESpec(router=RouterSpec(experts=8, chosen=2), experts=MLPSpec(size=32))
DEEPSEEK = RouterSpec(
    experts=8,
    chosen=3,
    score="sigmoid",
    choice_bias=True,
    groups=ExpertGroupsSpec(count=4, kept=2),
    normalized=True,
    eps=1e-20,
    scale=2.5,
)
SPECS = {
    "softmax": PLAIN,
    "normalized": replace(PLAIN, router=RouterSpec(experts=8, chosen=2, normalized=True)),
    "a least sum": replace(PLAIN, router=RouterSpec(experts=8, chosen=2, choice_bias=True, normalized=True, least=1e-12)),
    "the best of a group": replace(
        PLAIN, router=RouterSpec(experts=8, chosen=2, groups=ExpertGroupsSpec(count=2, kept=1, best=1, zero_outside=True), scale=16.0)
    ),
    "sigmoid in groups, shared": MoESpec(router=DEEPSEEK, experts=MLPSpec(size=32), shared=MLPSpec(size=48)),
    "groups of two": replace(PLAIN, router=replace(DEEPSEEK, groups=ExpertGroupsSpec(count=4, kept=3, best=2))),
    "a gate": replace(PLAIN, shared=MLPSpec(size=32), shared_gate=True),
    "an average": replace(PLAIN, shared=MLPSpec(size=32), multiplier=0.5),
    "gpt-oss": MoESpec(
        router=RouterSpec(experts=8, chosen=4, score="identity", bias=True, weighting="softmax"),
        experts=MLPSpec(size=32, activation="quick_gelu", bias=True, limit=1.5, up_plus=1.0),
    ),
    "sigmoid of the chosen": replace(PLAIN, router=RouterSpec(experts=8, chosen=2, score="identity", weighting="sigmoid", normalized=True)),
    "a scale for each expert": replace(PLAIN, router=RouterSpec(experts=8, chosen=2, normalized=True, expert_scale=True)),
    "square root of softplus": replace(PLAIN, router=RouterSpec(experts=8, chosen=2, score="sqrt_softplus", choice_bias=True)),
    "no gate": replace(PLAIN, experts=MLPSpec(size=32, gated=False, activation="relu2")),
    "norms of each branch": MoESpec(
        router=RouterSpec(experts=8, chosen=2, normalized=True, expert_scale=True, norm=NORM),
        experts=MLPSpec(size=32, activation="gelu_tanh"),
        shared=MLPSpec(size=48, activation="gelu_tanh"),
        norms=BranchNorms(before_experts=NORM, after_experts=NORM, before_shared=NORM, after_shared=NORM),
    ),
    "weights before": MoESpec(
        router=RouterSpec(experts=8, chosen=1, score="identity", weighting="sigmoid"),
        experts=MLPSpec(size=32),
        weighs_input=True,
        shared=MLPSpec(size=48),
    ),
    "weights before two": replace(PLAIN, experts=MLPSpec(size=32, gated=False, activation="relu2"), weighs_input=True),
    "every expert": replace(PLAIN, router=RouterSpec(experts=4, chosen=4)),
}


WITH_ONE_MORE = {
    "an average": SPECS["an average"],
    "as DeepSeek": MoESpec(router=DEEPSEEK, experts=MLPSpec(size=32), shared=MLPSpec(size=32)),
    "no gate": replace(SPECS["no gate"], shared=MLPSpec(size=32, gated=False, activation="relu2")),
    "clamped": replace(PLAIN, experts=MLPSpec(size=32, limit=1.5), shared=MLPSpec(size=32, limit=1.5)),
}
UNLIKE = {
    "a gate": SPECS["a gate"],
    "another size": SPECS["sigmoid in groups, shared"],
    "another activation": replace(PLAIN, shared=MLPSpec(size=32, activation="gelu_tanh")),
    "another limit": replace(PLAIN, experts=MLPSpec(size=32, limit=1.5), shared=MLPSpec(size=32, limit=2.5)),
    "weights before": replace(SPECS["weights before"], shared=MLPSpec(size=32)),
    "norms of each branch": replace(SPECS["norms of each branch"], shared=MLPSpec(size=32, activation="gelu_tanh")),
}


class Channel(nn.Module):
    """What stands around experts in a layer."""

    def __init__(self, spec: MoESpec) -> None:
        super().__init__()
        self.moe = MoE(spec, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.moe(x) * 0.5
        return out


def traced(spec: MoESpec) -> tuple[fx.GraphModule, dict[str, torch.Tensor], torch.Tensor]:
    """The graph of a channel with random weights, these by ref, and what the module itself gives."""
    module = Channel(spec)
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.5)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    names = [name for name, _ in module.named_parameters()]
    values = {"input:x": x} | {f"weight:{name}": parameter.data for name, parameter in module.named_parameters()}
    graph = trace(lambda x, *weights: torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,)), values)
    with torch.no_grad():
        return graph, values, module(x)


def fused(
    module: fx.GraphModule, values: dict[str, torch.Tensor], format: str, layout: Layout = "panels", *, captured: bool = False
) -> dict[str, torch.Tensor]:
    """Run the passes; returns the values as they read them. captured: whether choices are results."""
    eliminate_no_ops(module.graph)
    assert route_experts(module.graph) == 1
    if captured:
        capture_routes(module.graph, layers=1)
    assert group_experts(module.graph) == 1
    combine_experts(module.graph)
    formats = {
        ref.removeprefix("weight:"): "f32" if ".router." in ref or value.shape[0] == 1 else format
        for ref, value in values.items()
        if ref.startswith("weight:") and value.dim() == 2
    }
    assign_weight_kernels(module.graph, formats=formats, layout=layout)
    module.graph.lint()
    return {
        ref: pack(formats[name], value, layout) if (name := ref.removeprefix("weight:")) in formats else value
        for ref, value in values.items()
    }


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_chosen_compute_what_all_experts_did(spec: MoESpec) -> None:
    module, values, expected = traced(spec)
    given = fused(module, values, "f32")
    found = operators(module)
    assert "aten.bmm" not in found
    assert "aten.sort.stable" not in found
    assert found.count("experts_dense") == (3 if spec.experts.gated else 2)
    gather = "weigh_rows" if spec.weighs_input else "gather_rows"
    assert [found.count(name) for name in ("route", "sort_routes", gather, "combine_experts")] == [1, 1, 1, 1]
    torch.testing.assert_close(interpret(module, given), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [PLAIN, SPECS["gpt-oss"], SPECS["a gate"]], ids=["softmax", "gpt-oss", "a gate"])
def test_gate_and_up_become_one_product_of_rows_that_are_quantized_once(spec: MoESpec) -> None:
    module, values, expected = traced(spec)
    given = fused(module, values, "i6_g32")
    before = interpret(module, given)
    assert merge_sibling_linears(module.graph) == 1 + (spec.shared is not None)
    module.graph.lint()
    found = operators(module)
    assert found.count("experts_mixed") == 2
    # Of the tokens, of the experts' inner rows, and of those of the MLP beside them.
    assert found.count("quantize") == 2 + (spec.shared is not None)
    assert found.index("quantize") < found.index("gather_rows")
    assert torch.equal(interpret(module, given), before)
    assert float((before - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("spec", [PLAIN, SPECS["gpt-oss"], SPECS["a gate"]], ids=["softmax", "gpt-oss", "a gate"])
def test_rows_are_gathered_by_the_products_that_read_them(spec: MoESpec) -> None:
    """On NVIDIA; gate and up are parts of one."""
    module, values, expected = traced(spec)
    given = fused(module, values, "bf16", "rows")
    before = interpret(module, given, "rows")
    assert merge_sibling_linears(module.graph) == 1 + (spec.shared is not None)
    module.graph.lint()
    found = operators(module)
    assert (found.count("experts_rows_dense"), found.count("gather_rows")) == (2, 0)
    first, second = module.graph.find_nodes(op="call_function", target=torch.ops.engine.experts_rows_dense.default)
    assert (first.args[5:], second.args[5:]) == ((8, 2, True), (8, 1, False))
    assert torch.equal(interpret(module, given, "rows"), before)
    assert float((before - expected).norm() / expected.norm()) < 0.05


def test_what_follows_is_part_of_the_sum() -> None:
    module, values, _ = traced(SPECS["a gate"])
    fused(module, values, "f32")
    (combine,) = module.graph.find_nodes(op="call_function", target=torch.ops.engine.combine_experts.default)
    _, _, _, shared, gate, residual, multiplier, weighted = combine.args
    assert (shared is not None, gate is not None, residual.meta["ref"], multiplier, weighted) == (True, True, "input:x", 0.5, True)
    (output,) = module.graph.find_nodes(op="output")
    assert output.args[0] is combine or output.args[0] == (combine,)


def test_rows_that_were_weighted_are_quantized_once_and_added_as_they_are() -> None:
    module, values, expected = traced(SPECS["weights before"])
    given = fused(module, values, "i6_g32")
    merge_sibling_linears(module.graph)
    found = operators(module)
    assert found.count("quantize") == 4  # of weighted rows, of the experts' inner ones, and of two of what is beside them
    assert found.index("weigh_rows") < found.index("quantize", found.index("sort_routes"))
    (combine,) = module.graph.find_nodes(op="call_function", target=torch.ops.engine.combine_experts.default)
    assert combine.args[-1] is False
    actual = interpret(module, given)
    assert float((actual - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize(("layout", "format"), [("panels", "f32"), ("panels", "i6_g32"), ("rows", "bf16")])
@pytest.mark.parametrize("name", WITH_ONE_MORE)
def test_what_is_shared_is_one_more_expert(name: str, layout: Layout, format: str) -> None:
    spec = WITH_ONE_MORE[name]
    module, values, expected = traced(spec)
    given = fused(module, values, format, layout)
    before = interpret(module, given, layout)
    assert join_shared_expert(module.graph) == 1
    module.graph.lint()
    merge_sibling_linears(module.graph)
    module.graph.lint()
    assert torch.equal(interpret(module, given, layout), before)
    assert float((before - expected).norm() / expected.norm()) < 0.05
    linears = [name for name in operators(module) if name.startswith("linear_")]
    assert linears == ["linear_dense" if layout == "panels" else "linear_rows_dense"], "the router's"
    (combine,) = module.graph.find_nodes(op="call_function", target=torch.ops.engine.combine_experts.default)
    y, routes, _, shared, *_ = combine.args
    assert shared is None
    assert routes.meta["val"].shape[2] == spec.router.chosen + 1
    assert y.meta["val"].shape[0] == TOKENS * (spec.router.chosen + 1)
    if format == "i6_g32":
        assert operators(module).count("quantize") == 2


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_unlike_an_expert_stays_beside_them(name: str) -> None:
    module, values, _ = traced(UNLIKE[name])
    fused(module, values, "i6_g32")
    assert join_shared_expert(module.graph) == 0


def test_in_another_format_it_stays_beside_them() -> None:
    module, values, _ = traced(WITH_ONE_MORE["as DeepSeek"])
    fused(module, values, "i6_g32")
    (weight,) = (node for node in module.graph.find_nodes(op="placeholder") if node.meta["ref"] == "weight:moe.shared.up.weight")
    weight.meta["format"] = "i5_g32"
    assert join_shared_expert(module.graph) == 0


def test_where_choices_are_results_they_stay_those_of_the_router() -> None:
    module, values, _ = traced(WITH_ONE_MORE["as DeepSeek"])
    fused(module, values, "f32", captured=True)
    assert join_shared_expert(module.graph) == 0


def test_without_a_route_nothing_is_grouped() -> None:
    module, _, _ = traced(PLAIN)
    assert group_experts(module.graph) == 0
    assert "aten.bmm" in operators(module)


def test_what_is_read_elsewhere_stays() -> None:
    """A router whose scores are wanted too."""

    def weighted(logits: torch.Tensor) -> torch.Tensor:
        scores = logits.softmax(1)
        chosen = scores.sort(dim=1, descending=False, stable=True).indices[:, :2]  # the smallest: no router's choice
        return torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))

    module = trace(weighted, {"input:logits": torch.randn(3, 8)})
    assert route_experts(module.graph) == 0


def test_experts_that_do_not_fill_panels_stay_as_they_are() -> None:
    module, _, _ = traced(replace(PLAIN, experts=MLPSpec(size=24)))
    assert route_experts(module.graph) == 1
    assert group_experts(module.graph) == 0


@pytest.mark.parametrize(("layout", "format"), [("panels", "i6_g32"), ("rows", "bf16")])
@pytest.mark.parametrize("name", ["softmax", "gpt-oss", "a gate", "as DeepSeek", "weights before", "weights before two"])
def test_rows_that_nobody_reads_choose_no_experts(name: str, layout: Layout, format: str) -> None:
    spec = (SPECS | WITH_ONE_MORE)[name]
    module, values, _ = traced(spec)
    joins = spec.shared is not None and not spec.shared_gate and not spec.weighs_input
    (output,) = module.graph.find_nodes(op="output")
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        wanted = module.graph.placeholder("wanted")
    mode = output.args[0].meta["val"].fake_mode
    with mode:
        wanted.meta = {"ref": "input:wanted", "val": torch.empty(2, dtype=torch.int64)}
    given = fused(module, values, format, layout) | {"input:wanted": torch.tensor([4, 9])}
    whole = interpret(module, given, layout)
    with module.graph.inserting_before(output):
        output.args = (call_like(module.graph, torch.ops.aten.index_select.default, (output.args[0], 0, wanted)),)
    assert join_shared_expert(module.graph) == joins
    merge_sibling_linears(module.graph)
    assert select_rows_early(module.graph) > 0
    module.graph.lint()
    module.recompile()
    assert torch.equal(interpret(module, given, layout), whole[[4, 9]])
    (combined,) = module.graph.find_nodes(op="call_function", target=torch.ops.engine.combine_experts.default)
    assert combined.args[0].meta["val"].shape[0] == 2 * (spec.router.chosen + joins)
