"""No-op elimination, the choice of kernels, and the pipeline that runs the passes."""

import pytest
import torch
from torch.nn import functional
from traced_graphs import interpret, operators, pack, trace

from engine.errors import BuildError, UsageError
from engine.kernels.linear import formats
from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.eliminate_no_ops import eliminate_no_ops
from engine.passes.pipeline import Pass, pipeline, run


def test_no_ops_go_and_values_stay() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x[:, None].to(torch.float32).view(-1, 1, 6)
        return (y[1:] * 2).detach()

    x = torch.randn(5, 6)
    module = trace(function, {"input:x": x})
    before = operators(module)
    assert eliminate_no_ops(module.graph) == len(before) - len(operators(module)) > 0
    module.recompile()
    assert torch.equal(module(x), function(x))
    assert operators(module) == ["aten.unsqueeze", "aten.slice.Tensor", "aten.mul.Tensor"]


def test_casts_and_views_that_do_something_stay() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float32).view(3, 4)[:2]

    module = trace(function, {"input:x": torch.arange(12, dtype=torch.int32)})
    assert eliminate_no_ops(module.graph) == 0


QUANTIZER = {"f32": [], "bf16": ["round_bf16"], "q8_0": ["quantize"], "i4_g32": ["quantize"], "w8a8": ["quantize_rows"]}
# Dense is exact up to summation order; the others round activations to 8 bits of significand, or to 8 bits.
BOUND = {"f32": 1e-5, "bf16": 2.0**-8, "q8_0": 0.05, "i4_g32": 0.05, "w8a8": 0.05}


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


@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0", "i4_g32", "w8a8"])
def test_every_linear_and_embedding_is_assigned(inputs: dict[str, torch.Tensor], format: str) -> None:
    module = trace(model, inputs)
    assert assign_weight_kernels(module.graph, formats={"table": format, "w": format}) == 3
    kernel = "dense" if format == "f32" else format
    linear = [*QUANTIZER[format], f"linear_{kernel}"]
    assert operators(module) == [f"embedding_{kernel}", *linear, *linear]
    table, weight, _ = (node for node in module.graph.find_nodes(op="placeholder") if node.meta["ref"].startswith("weight:"))
    packed = [pack(format, inputs[ref]) for ref in ("weight:table", "weight:w")]
    assert [node.meta["val"].shape for node in (table, weight)] == [tensor.shape for tensor in packed]
    actual = interpret(module, inputs | {"weight:table": packed[0], "weight:w": packed[1]})
    plain = [formats.unpack(kernel, packed[0], 19, 40), formats.unpack(kernel, packed[1], 40, 40)]
    expected = model(inputs["input:tokens"], *plain, inputs["weight:b"])
    assert float((actual - expected).norm() / expected.norm()) < BOUND[format]


def test_activations_that_several_linears_read_are_quantized_once(inputs: dict[str, torch.Tensor]) -> None:
    def function(x: torch.Tensor, table: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight).sum() + functional.linear(x, table)

    module = trace(function, {"input:x": torch.randn(3, 40), "weight:table": inputs["weight:table"], "weight:w": inputs["weight:w"]})
    assign_weight_kernels(module.graph, formats={"table": "q8_0", "w": "q8_0"})
    assert operators(module).count("quantize") == 1
    assert operators(module).count("linear_q8_0") == 2


def test_a_matrix_with_another_use_is_an_error(inputs: dict[str, torch.Tensor]) -> None:
    def function(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return functional.embedding(tokens, table) + table.sum()

    module = trace(function, {name: inputs[name] for name in ("input:tokens", "weight:table")})
    with pytest.raises(BuildError, match="table"):
        assign_weight_kernels(module.graph, formats={"table": "f32"})


def test_a_required_pass_that_matches_nothing_fails() -> None:
    module = trace(lambda x: x + 1, {"input:x": torch.ones(2)})
    assert run(module.graph, [Pass(name="optional", rewrite=eliminate_no_ops)])[0].matches == 0
    with pytest.raises(BuildError, match="required matched nothing"):
        run(module.graph, [Pass(name="required", rewrite=eliminate_no_ops, required=True)])


def test_an_expected_pass_that_matches_nothing_fails() -> None:
    module = trace(lambda x: x + 1, {"input:x": torch.ones(2)})
    passes = [Pass(name="optional", rewrite=eliminate_no_ops)]
    with pytest.raises(BuildError, match="optional matched nothing"):
        run(module.graph, passes, expected={"optional"})
    with pytest.raises(BuildError, match="no pass 'another'"):
        run(module.graph, passes, expected={"another"})


def test_any_pass_but_the_required_can_be_left_out() -> None:
    names = [item.name for item in pipeline({})]
    optional = [item.name for item in pipeline({}) if not item.required]
    for name in optional:
        assert [item.name for item in pipeline({}, [name])] == [other for other in names if other != name]
    with pytest.raises(UsageError, match="no pass 'fuse_nothing'"):
        pipeline({}, ["fuse_nothing"])
    with pytest.raises(UsageError, match="assign_weight_kernels"):
        pipeline({}, ["assign_weight_kernels"])
