"""Each pass: how many rewrites it makes, and that the graph computes what it did."""

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from engine.errors import BuildError
from engine.kernels import ops
from engine.kernels.linear import formats, reference
from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.eliminate_no_ops import eliminate_no_ops
from engine.passes.pipeline import Pass, run


def traced(function: Any, refs: dict[str, torch.Tensor]) -> fx.GraphModule:
    """The ATen graph of `function` on fake tensors like `refs`, its placeholders named."""
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in refs.values()]
    with mode:
        module = make_fx(function, pre_dispatch=True, _allow_non_fake_inputs=True)(*fakes)
    for node, ref in zip(module.graph.find_nodes(op="placeholder"), refs, strict=True):
        node.meta["ref"] = ref
    return module


def operators(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def test_no_ops_go_and_values_stay() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x[:, None].to(torch.float32).view(-1, 1, 6)
        return (y[1:] * 2).detach()

    x = torch.randn(5, 6)
    module = traced(function, {"input:x": x})
    before = operators(module)
    assert eliminate_no_ops(module.graph) == len(before) - len(operators(module)) > 0
    module.recompile()
    assert torch.equal(module(x), function(x))
    assert operators(module) == ["aten.unsqueeze.default", "aten.slice.Tensor", "aten.mul.Tensor"]


def test_casts_and_views_that_do_something_stay() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float32).view(3, 4)[:2]

    module = traced(function, {"input:x": torch.arange(12, dtype=torch.int32)})
    assert eliminate_no_ops(module.graph) == 0


def model(*inputs: torch.Tensor) -> torch.Tensor:
    tokens, table, weight, bias = inputs
    x = functional.embedding(tokens, table)
    return functional.linear(functional.linear(x, weight, bias), table)


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "input:tokens": torch.tensor([4, 0, 18], dtype=torch.int32),
        "weight:table": torch.randn(19, 40, generator=generator),
        "weight:w": torch.randn(40, 40, generator=generator),
        "weight:b": torch.randn(40, generator=generator),
    }


@pytest.mark.parametrize("format", ["f32", "q8_0", "q4_1"])
def test_every_linear_and_embedding_is_assigned(inputs: dict[str, torch.Tensor], format: str) -> None:
    ops.define()
    ops.register_fakes()
    module = traced(model, inputs)
    assert assign_weight_kernels(module.graph, formats={"table": format, "w": format}) == 3
    kernel = "dense" if format == "f32" else format
    assert operators(module) == [f"engine.embedding_{kernel}.default", f"engine.linear_{kernel}.default", f"engine.linear_{kernel}.default"]
    table, weight, _ = (node for node in module.graph.find_nodes(op="placeholder") if node.meta["ref"].startswith("weight:"))
    packed = [_pack(format, inputs[ref]) for ref in ("weight:table", "weight:w")]
    assert [node.meta["val"].shape for node in (table, weight)] == [tensor.shape for tensor in packed]
    actual = _interpret(module, kernel, [inputs["input:tokens"], *packed, inputs["weight:b"]])
    plain = [formats.unpack(kernel, packed[0], 19, 40), formats.unpack(kernel, packed[1], 40, 40)]
    expected = model(inputs["input:tokens"], *plain, inputs["weight:b"])
    # Dense is exact up to summation order; the others quantize activations to 8 bits.
    bound = 1e-5 if kernel == "dense" else 0.05
    assert float((actual - expected).norm() / expected.norm()) < bound


def _pack(format: str, weight: torch.Tensor) -> torch.Tensor:
    return formats.pack_dense(weight) if format == "f32" else formats.pack_blocks(format, formats.quantize(format, weight))


def _interpret(module: fx.GraphModule, kernel: str, values: list[torch.Tensor]) -> torch.Tensor:
    class Interpreter(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            operation = reference.embedding if "embedding" in str(target) else reference.linear
            return operation(kernel, *args)

    result: torch.Tensor = Interpreter(module).run(*values)
    return result


def test_a_matrix_with_another_use_is_an_error(inputs: dict[str, torch.Tensor]) -> None:
    def function(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return functional.embedding(tokens, table) + table.sum()

    module = traced(function, {name: inputs[name] for name in ("input:tokens", "weight:table")})
    with pytest.raises(BuildError, match="table"):
        assign_weight_kernels(module.graph, formats={"table": "f32"})


def test_a_required_pass_that_matches_nothing_fails() -> None:
    module = traced(lambda x: x + 1, {"input:x": torch.ones(2)})
    assert run(module.graph, [Pass(name="optional", rewrite=eliminate_no_ops)])[0].matches == 0
    with pytest.raises(BuildError, match="required matched nothing"):
        run(module.graph, [Pass(name="required", rewrite=eliminate_no_ops, required=True)])
