"""capture_routes: what routers choose, of every token, beside results that stay what they are."""

import pytest
import torch
from torch import fx, nn
from traced_graphs import interpret, pack, trace

from engine.errors import BuildError
from engine.models.parts.mlp import MLPSpec
from engine.models.parts.moe import MoE, MoESpec, RouterSpec
from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.capture_routes import capture_routes
from engine.passes.combine_experts import combine_experts
from engine.passes.eliminate_no_ops import eliminate_no_ops
from engine.passes.group_experts import group_experts
from engine.passes.merge_sibling_linears import merge_sibling_linears
from engine.passes.route_experts import route_experts
from engine.passes.select_rows_early import select_rows_early

SPEC = MoESpec(router=RouterSpec(experts=8, chosen=3), experts=MLPSpec(size=32), shared=MLPSpec(size=32))
HIDDEN, TOKENS, LAYERS = 64, 11, 2
ROWS = torch.tensor([4, 9])


class Layers(nn.Module):
    """Layers of experts alone, of which some rows are wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MoE(SPEC, HIDDEN) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x.index_select(0, rows)


def traced() -> tuple[fx.GraphModule, dict[str, torch.Tensor], list[torch.Tensor]]:
    """The graph with random weights, all values by ref, and the tables of weights that the plain routers make."""
    module = Layers()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    names = [name for name, _ in module.named_parameters()]
    values = {"input:x": torch.randn(TOKENS, HIDDEN, generator=generator), "input:rows": ROWS}
    values |= {f"weight:{name}": parameter.data for name, parameter in module.named_parameters()}
    graph = trace(lambda x, rows, *weights: torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x, rows)), values)
    tables: list[torch.Tensor] = []
    for layer in module.layers:
        assert isinstance(layer, MoE)
        layer.router.register_forward_hook(lambda router, given, table: tables.append(table))
    with torch.no_grad():
        module(values["input:x"], ROWS)
    return graph, values, tables


def fused(*, captured: bool) -> tuple[fx.GraphModule, dict[str, torch.Tensor], list[torch.Tensor]]:
    """The same after the passes."""
    module, values, tables = traced()
    eliminate_no_ops(module.graph)
    assert route_experts(module.graph) == LAYERS
    if captured:
        assert capture_routes(module.graph, layers=LAYERS) == LAYERS
    assert group_experts(module.graph) == LAYERS
    combine_experts(module.graph)
    formats = {ref.removeprefix("weight:"): "f32" if ".router." in ref else "i6_g32" for ref in values if ref.startswith("weight:")}
    assign_weight_kernels(module.graph, formats=formats)
    merge_sibling_linears(module.graph)
    assert select_rows_early(module.graph) > 0
    module.graph.lint()
    module.recompile()
    return module, {ref: pack(formats[ref[7:]], value) if ref[7:] in formats else value for ref, value in values.items()}, tables


def test_every_token_s_choices_are_results_and_no_other_bit_changes() -> None:
    module, values, tables = fused(captured=True)
    plain, _, _ = fused(captured=False)
    out, *routes = interpret(module, values)
    assert torch.equal(out, interpret(plain, values))
    assert [route.shape for route in routes] == [(TOKENS, 2, 3)] * LAYERS
    # Of the first layer, which reads what the plain module does; the second reads what quantized experts made.
    assert torch.equal(routes[0][:, 0], tables[0].sort(dim=1, descending=True, stable=True).indices[:, :3].int())


def test_experts_of_the_last_layer_compute_only_rows_that_are_wanted() -> None:
    module, _, _ = fused(captured=True)
    rows = {
        name: [node.meta["val"].shape[0] for node in module.graph.nodes if node.target is getattr(torch.ops.engine, name).default]
        for name in ("route", "gather_rows")
    }
    assert rows == {"route": [TOKENS] * 2, "gather_rows": [TOKENS * 3, len(ROWS) * 3]}


def test_a_router_that_no_pass_recognised_is_not_passed_over() -> None:
    module, _, _ = traced()
    eliminate_no_ops(module.graph)
    with pytest.raises(BuildError, match="of 2 layers with experts, 0 have a router whose choices can be captured"):
        capture_routes(module.graph, layers=LAYERS)
