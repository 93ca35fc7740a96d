"""The memory plan bounds what a graph computes, in the sizes of a step's inputs."""

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from engine.artifacts import InputInfo, MemoryPlan
from engine.compiler.memory_plan import plan_activations
from engine.errors import BuildError

INPUTS = [
    InputInfo(name="x", dtype="float32", dims=["T"]),
    InputInfo(name="cu_seqlens", dtype="int32", dims=["S1"]),
    InputInfo(name="logit_rows", dtype="int32", dims=["R"]),
]
T, S, R = 13, 3, 5


def graph_of(function: Callable[..., torch.Tensor]) -> fx.Graph:
    """The ATen graph of `function` of the inputs, with symbols for their sizes."""
    arguments = (torch.zeros(T), torch.zeros(S + 1, dtype=torch.int32), torch.zeros(R, dtype=torch.int32))
    module = make_fx(function, tracing_mode="symbolic")(*arguments)
    for node, info in zip(module.graph.find_nodes(op="placeholder"), INPUTS, strict=True):
        node.meta["ref"] = f"input:{info.name}"
    return module.graph


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, starts, rows: x + 1, {"T": 4}),
        (lambda x, starts, rows: x.index_select(0, rows), {"R": 4}),
        (lambda x, starts, rows: starts + 1, {"1": 4, "S": 4}),
        (lambda x, starts, rows: torch.outer(x, rows.float()), {"R": 4, "R*T": 4, "T": 4}),
        (lambda x, starts, rows: x.repeat(6), {"T": 4 * 6}),  # several rows for every token
        (lambda x, starts, rows: torch.outer(x, x), {"T": 4, "T*T": 4}),
        (lambda x, starts, rows: x[::3].sin(), {"1": 6, "T": 4}),  # a view and its sine, each at most (T + 2) / 3 numbers
        (lambda x, starts, rows: torch.zeros(10) + 1, {"1": 80}),  # as large as it is, whatever the step
    ],
)
def test_every_size_counts_in_its_own_unit(function: Callable[..., torch.Tensor], expected: dict[str, int]) -> None:
    assert plan_activations(graph_of(function), INPUTS) == expected


def test_the_plan_s_value_is_an_upper_bound() -> None:
    activations = plan_activations(graph_of(lambda x, starts, rows: torch.outer(x, rows.float()) + 1), INPUTS)
    plan = MemoryPlan(weight_bytes=0, activations=activations)
    assert plan.step_bytes({"T": 7, "S": 2, "R": 2}) == 4 * 7 + 4 * 2 + 2 * 4 * 7 * 2


def test_a_size_that_no_input_bounds_is_refused_by_name() -> None:
    with pytest.raises(BuildError, match=r"the memory of nonzero .*cannot be bounded"):
        plan_activations(graph_of(lambda x, starts, rows: x.nonzero()), INPUTS)
