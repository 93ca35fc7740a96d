"""fuse_multiplier: behind and in front of linears and embeddings, and where it must not fire."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from traced_graphs import interpret, operators, pack, trace

from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.fuse_multiplier import fuse_multiplier
from engine.passes.fuse_residual_add import fuse_residual_add
from engine.passes.fuse_soft_cap import fuse_soft_cap
from engine.passes.linears import is_linear, linear_arguments
from engine.passes.merge_sibling_linears import merge_sibling_linears

Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def refs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"input:x": (5, 64), "weight:w": (64, 64), "weight:v": (64, 64), "weight:bias": (64,)}
    return {ref: torch.randn(*shape, generator=generator) for ref, shape in shapes.items()}


def fused(function: Function, format: str) -> tuple[int, list[str], list[float], Tensor, Tensor]:
    """Number of rewrites, the operators then, the linears' multipliers, and the result before and after."""
    values = refs()
    module = trace(function, values)
    assign_weight_kernels(module.graph, formats={"w": format, "v": format})
    values |= {ref: pack(format, values[ref]) for ref in ("weight:w", "weight:v") if ref in _matrices(module)}
    before = interpret(module, values)
    count = fuse_multiplier(module.graph)
    fuse_residual_add(module.graph)
    module.graph.lint()
    multipliers = [linear_arguments(node).multiplier for node in module.graph.nodes if is_linear(node)]
    return count, operators(module), multipliers, before, interpret(module, values)


def _matrices(module: torch.fx.GraphModule) -> set[str]:
    return {node.meta["ref"] for node in module.graph.find_nodes(op="placeholder") if "format" in node.meta}


BEHIND: list[tuple[Function, int]] = [
    (lambda x, w, v, b: functional.linear(x, w) * 0.3, 1),
    (lambda x, w, v, b: 0.3 * functional.linear(x, w, b), 1),
    (lambda x, w, v, b: x + functional.linear(x, w, b) * 0.3, 1),
    (lambda x, w, v, b: x + functional.linear(x, w) * 0.3 + functional.linear(x, v) * 0.7, 2),
]


@pytest.mark.parametrize("format", ["f32", "q8_0"])
@pytest.mark.parametrize(("function", "linears"), BEHIND)
def test_behind_a_linear_the_bits_stay(function: Function, linears: int, format: str) -> None:
    count, left, multipliers, before, after = fused(function, format)
    assert count == linears
    assert multipliers == [0.3, 0.7][:linears]
    assert not {"aten.mul.Tensor", "aten.add.Tensor"} & set(left)
    assert torch.equal(before, after)


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_in_front_of_linears(format: str) -> None:
    def function(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Tensor:
        scaled = x * 0.3
        return functional.linear(scaled, w) - functional.linear(scaled, v)

    count, left, multipliers, before, after = fused(function, format)
    assert count == 1
    assert multipliers == [0.3, 0.3]
    assert left.count("quantize") == (1 if format == "q8_0" else 0)
    assert "aten.mul.Tensor" not in left
    torch.testing.assert_close(before, after, rtol=0, atol=2e-5 if format == "f32" else 0.2)


def test_of_an_embedding_and_of_capped_logits() -> None:
    """Tied weights, each use with its own multiplier."""

    def function(tokens: Tensor, table: Tensor) -> Tensor:
        logits = functional.linear(functional.embedding(tokens, table) * 8.0, table) * 0.0625
        return 30.0 * torch.tanh(logits / 30.0)

    values = {"input:tokens": torch.tensor([4, 0, 18], dtype=torch.int32), "weight:table": torch.randn(19, 64)}
    module = trace(function, values)
    assign_weight_kernels(module.graph, formats={"table": "q8_0"})
    values["weight:table"] = pack("q8_0", values["weight:table"])
    before = interpret(module, values)
    assert fuse_multiplier(module.graph) == 2
    assert fuse_soft_cap(module.graph) == 1
    assert operators(module) == ["embedding_q8_0", "quantize", "linear_q8_0", "soft_cap"]
    assert torch.equal(interpret(module, values), before)


STAY: list[Function] = [
    lambda x, w, v, b: functional.linear(x, w) * b,
    lambda x, w, v, b: functional.linear(x, w).view(5, 2, 32) * 0.3,
    lambda x, w, v, b: functional.linear(x * 0.3, w, b),
    lambda x, w, v, b: x * 0.3 + functional.linear(x, w),
]


@pytest.mark.parametrize("function", STAY)
def test_other_products_stay(function: Function) -> None:
    count, left, _, before, after = fused(function, "q8_0")
    assert count == 0
    assert "aten.mul.Tensor" in left
    assert torch.equal(before, after)


def test_a_product_that_is_also_read_otherwise_stays() -> None:
    def read_twice(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Tensor:
        y = functional.linear(x, w)
        return y * 0.3 + y

    def read_plainly(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Tensor:
        scaled = x * 0.3
        return scaled + functional.linear(scaled, w)

    for function in (read_twice, read_plainly):
        count, _, _, before, after = fused(function, "f32")
        assert count == 0
        assert torch.equal(before, after)


def test_only_siblings_with_one_multiplier_become_one() -> None:
    def function(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return functional.linear(x, w) * 0.3 - functional.linear(x, v) * 0.3

    def differently(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return functional.linear(x, w) * 0.3 - functional.linear(x, v)

    for siblings, merged in ((function, 1), (differently, 0)):
        values = refs()
        module = trace(siblings, values)
        assign_weight_kernels(module.graph, formats={"w": "f32", "v": "f32"})
        values |= {ref: pack("f32", values[ref]) for ref in ("weight:w", "weight:v")}
        before = interpret(module, values)
        fuse_multiplier(module.graph)
        assert merge_sibling_linears(module.graph) == merged
        torch.testing.assert_close(interpret(module, values), before)
