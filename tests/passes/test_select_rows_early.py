"""select_rows_early: how far a selection of rows moves, and that the selected rows stay what they were."""

import torch
from torch.nn import functional
from traced_graphs import interpret, operators, pack, trace

from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.fuse_residual_add import fuse_residual_add
from engine.passes.merge_sibling_linears import merge_sibling_linears
from engine.passes.select_rows_early import select_rows_early


def step(x: torch.Tensor, cu_seqlens: torch.Tensor, first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
    stream = torch.sin(x)
    y = functional.linear(stream, first) * 0.5
    stream = stream + functional.linear(y, second)
    stream = stream + functional.linear(stream, third)
    return stream.index_select(0, cu_seqlens[1:] - 1)


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    weights = {f"weight:{name}": torch.randn(64, 64, generator=generator) for name in ("first", "second", "third")}
    return {
        "input:x": torch.randn(9, 64, generator=generator),
        "input:cu_seqlens": torch.tensor([0, 4, 5, 9], dtype=torch.int32),
        **weights,
    }


def test_rows_are_selected_before_the_linears() -> None:
    values = inputs()
    module = trace(step, values)
    assign_weight_kernels(module.graph, formats=dict.fromkeys(("first", "second", "third"), "q8_0"))
    assert fuse_residual_add(module.graph) == 2
    values |= {ref: pack("q8_0", value) for ref, value in values.items() if ref.startswith("weight:")}
    before = interpret(module, values)
    # past the third linear, its activations and the second linear; `y` is made by an operator that it does not know
    assert select_rows_early(module.graph) == 4
    module.graph.lint()
    assert torch.equal(interpret(module, values), before)
    rows = [int(node.meta["val"].shape[0]) for node in module.graph.nodes if "linear" in str(node.target)]
    assert rows == [9, 3, 3]


def test_slices_of_columns_let_it_through_and_slices_of_rows_do_not() -> None:
    def columns(x: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (functional.linear(x, first) * functional.linear(x, second)).index_select(0, rows)

    values = inputs()
    refs = {"input:x": values["input:x"], "input:rows": torch.tensor([1, 1, 8])}
    refs |= {ref: values[ref] for ref in ("weight:first", "weight:second")}
    module = trace(columns, refs)
    assign_weight_kernels(module.graph, formats={"first": "f32", "second": "f32"})
    merge_sibling_linears(module.graph)
    assert select_rows_early(module.graph) == 0  # the product is not one of ours

    refs = {"input:x": values["input:x"], "input:rows": torch.tensor([1, 1, 6])}
    module = trace(lambda x, rows: x[2:].index_select(0, rows), refs)
    assert select_rows_early(module.graph) == 0


def test_a_value_that_is_also_read_whole_stays() -> None:
    def function(x: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, weight)
        return y.index_select(0, rows) + y.sum()

    values = inputs()
    module = trace(function, {"input:x": values["input:x"], "input:rows": torch.tensor([1, 8]), "weight:first": values["weight:first"]})
    assign_weight_kernels(module.graph, formats={"first": "f32"})
    assert select_rows_early(module.graph) == 0
    assert operators(module).count("linear_dense") == 1
