"""fuse_activation, fuse_gate, fuse_xielu, fuse_soft_cap: counts, values, and where they must not fire."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from traced_graphs import interpret, operators, pack, trace

from engine.kernels.activations import reference
from engine.kernels.row_operators import FUNCTIONS
from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.fuse_activation import fuse_activation
from engine.passes.fuse_gate import fuse_gate
from engine.passes.fuse_quantize import fuse_quantize
from engine.passes.fuse_soft_cap import fuse_soft_cap
from engine.passes.fuse_xielu import fuse_xielu


def matrices(*shape: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {f"input:{name}": torch.randn(*shape, generator=generator) for name in ("x", "y")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_one_operator(name: str) -> None:
    function, values = reference.FUNCTIONS[name], matrices(5, 64)
    module = trace(lambda x, y: function(x) + y, values)
    assert fuse_activation(module.graph) == 1
    assert fuse_gate(module.graph) == 0
    assert operators(module) == [name, "aten.add.Tensor"]
    torch.testing.assert_close(interpret(module, values), function(values["input:x"]) + values["input:y"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_can_be_a_gate(name: str) -> None:
    function, values = reference.FUNCTIONS[name], matrices(5, 64)
    for gated in (lambda x, y: function(x) * y, lambda x, y: y * function(x)):
        module = trace(gated, values)
        assert fuse_activation(module.graph) == 1
        assert fuse_gate(module.graph) == 1
        assert operators(module) == [f"{name}_mul"]
        torch.testing.assert_close(interpret(module, values), function(values["input:x"]) * values["input:y"])


@pytest.mark.parametrize("function", [lambda x, y: functional.relu(x).square(), lambda x, y: functional.relu(x).pow(2)])
def test_squares_in_both_spellings(function: Callable[..., Tensor]) -> None:
    module = trace(function, matrices(5, 64))
    assert fuse_activation(module.graph) == 1
    assert operators(module) == ["relu2"]


def test_functions_of_anything_but_rows_stay() -> None:
    assert fuse_activation(trace(lambda x, y: functional.gelu(x) + functional.relu(y), matrices(5, 2, 32)).graph) == 0


def test_a_softplus_that_is_bent_elsewhere_stays() -> None:
    assert (
        fuse_activation(trace(lambda x, y: functional.softplus(x, beta=2.0) + functional.softplus(y, threshold=5.0), matrices(5, 64)).graph)
        == 0
    )


def test_a_gate_with_two_readers_or_another_shape_stays() -> None:
    def two_readers(x: Tensor, y: Tensor) -> Tensor:
        gate = functional.silu(x)
        return gate * y + gate

    for function in (two_readers, lambda x, y: functional.silu(x) * y[:, :1]):
        graph = trace(function, matrices(5, 64)).graph
        assert fuse_activation(graph) == 1
        assert fuse_gate(graph) == 0


@pytest.mark.parametrize("function", [lambda x, y: x * torch.sigmoid(1.7 * x), lambda x, y: y * torch.sigmoid(1.702 * x)])
def test_a_sigmoid_that_is_nearly_quick_gelu_is_a_sigmoid(function: Callable[..., Tensor]) -> None:
    module = trace(function, values := matrices(5, 64))
    assert fuse_activation(module.graph) == 1
    assert "sigmoid" in operators(module)
    torch.testing.assert_close(interpret(module, values), function(*values.values()))


def test_the_gate_of_attention_is_quantized_for_the_output_projection() -> None:
    def output(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x.view(5, 64) * torch.sigmoid(y), weight)

    values = {"input:x": torch.randn(5, 2, 32), "input:y": torch.randn(5, 64), "weight:w": torch.randn(64, 64)}
    module = trace(output, values)
    assign_weight_kernels(module.graph, formats={"w": "q8_0"})
    values["weight:w"] = pack("q8_0", values["weight:w"])
    before = interpret(module, values)
    assert [rewrite(module.graph) for rewrite in (fuse_activation, fuse_gate, fuse_quantize)] == [1, 1, 1]
    assert operators(module) == ["aten.view", "sigmoid_mul_quantize", "linear_q8_0"]
    torch.testing.assert_close(interpret(module, values), before)


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
    return reference.xielu(x, functional.softplus(alpha_p), beta + functional.softplus(alpha_n), beta, eps)


def xielu_refs(*shape: int) -> dict[str, Tensor]:
    parameters = {"alpha_p": torch.tensor([0.2]), "alpha_n": torch.tensor([-0.7]), "beta": torch.tensor(0.5), "eps": torch.tensor(-1e-6)}
    return {"input:x": torch.randn(*shape), **{f"weight:{name}": value for name, value in parameters.items()}}


def test_xielu_is_one_operator_beside_its_parameters() -> None:
    values = xielu_refs(5, 64)
    module = trace(xielu, values)
    assert fuse_xielu(module.graph) == 1
    assert sorted(operators(module)) == ["aten.add.Tensor", "aten.softplus", "aten.softplus", "xielu"]
    torch.testing.assert_close(interpret(module, values), xielu(*values.values()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, p, n, b, e: torch.where(x > 1, p * x * x, (torch.expm1(torch.minimum(x, e)) - x) * n) + b * x,
        lambda x, p, n, b, e: torch.where(x > 0, p * x * b, (torch.expm1(torch.minimum(x, e)) - x) * n) + b * x,
        lambda x, p, n, b, e: torch.where(x > 0, p * x * x, (torch.expm1(torch.minimum(x, e)) - b) * n) + b * x,
        lambda x, p, n, b, e: torch.where(x > 0, p * x * x, (torch.expm1(torch.minimum(x, e)) - x) * n) - b * x,
        lambda x, p, n, b, e: torch.where(x > 0, p * x * x, (torch.expm1(torch.minimum(x, e)) - x) * n) + b * x.sin(),
    ],
)
def test_what_is_no_xielu_stays(function: Callable[..., Tensor]) -> None:
    assert fuse_xielu(trace(function, xielu_refs(5, 64)).graph) == 0


def test_xielu_of_anything_but_rows_stays() -> None:
    assert fuse_xielu(trace(xielu, xielu_refs(5, 2, 32)).graph) == 0


def test_a_soft_cap_is_one_operator() -> None:
    values = matrices(5, 64)
    module = trace(lambda x, y: 30.0 * torch.tanh(x / 30.0) + y, values)
    assert fuse_soft_cap(module.graph) == 1
    assert operators(module) == ["soft_cap", "aten.add.Tensor"]
    torch.testing.assert_close(interpret(module, values), reference.soft_cap(values["input:x"], 30.0) + values["input:y"])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: 20.0 * torch.tanh(x / 30.0),
        lambda x, y: 30.0 * torch.tanh(x / y),
        lambda x, y: 30.0 * torch.tanh(x),
    ],
)
def test_of_what_is_no_soft_cap_the_tanh_is_one_of_1(function: Callable[..., Tensor]) -> None:
    values = {name: 1 + value.abs() for name, value in matrices(5, 64).items()}
    module = trace(function, values)
    assert fuse_soft_cap(module.graph) == 1
    assert operators(module).count("soft_cap") == 1
    assert "aten.mul.Tensor" in operators(module)
    torch.testing.assert_close(interpret(module, values), function(*values.values()))


def test_a_soft_cap_of_anything_but_rows_stays() -> None:
    assert fuse_soft_cap(trace(lambda x, y: 30.0 * torch.tanh(x.view(5, 2, 32) / 30.0), matrices(5, 64)).graph) == 0
