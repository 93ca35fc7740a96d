"""merge_sibling_linears: which linears become one, and that nothing changes."""

import pytest
import torch
from torch.nn import functional
from traced_graphs import interpret, operators, pack, trace

from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.merge_sibling_linears import merge_sibling_linears
from engine.passes.select_rows_early import select_rows_early

WIDTHS = {"q": 32, "k": 16, "v": 20}


def attention_inputs(*inputs: torch.Tensor) -> torch.Tensor:
    x, *rest = inputs
    weights, biases = rest[:3], rest[3:] or (None, None, None)
    q, k, v = (functional.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return torch.cat((v * 2, k, q), dim=1)


def inputs(*, bias: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    refs = {"input:x": torch.randn(3, 40, generator=generator)}
    refs |= {f"weight:layers.0.{name}.weight": torch.randn(width, 40, generator=generator) for name, width in WIDTHS.items()}
    if bias:
        refs |= {f"weight:layers.0.{name}.bias": torch.randn(width, generator=generator) for name, width in WIDTHS.items()}
    return refs


def packed(refs: dict[str, torch.Tensor], format: str) -> dict[str, torch.Tensor]:
    return {ref: pack(format, value) if value.dim() == 2 and ref.startswith("weight:") else value for ref, value in refs.items()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("format", ["f32", "i4_g32"])
def test_siblings_become_one(format: str, bias: bool) -> None:
    refs = inputs(bias=bias)
    module = trace(attention_inputs, refs)
    assign_weight_kernels(module.graph, formats={f"layers.0.{name}.weight": format for name in WIDTHS})
    before = interpret(module, packed(refs, format))
    assert merge_sibling_linears(module.graph) == 2
    module.graph.lint()
    kernel = "linear_dense" if format == "f32" else f"linear_{format}"
    assert operators(module).count(kernel) == 1
    merged = [node for node in module.graph.find_nodes(op="placeholder") if "parts" in node.meta]
    assert [node.meta["ref"] for node in merged] == [
        f"weight:layers.0.q+k+v.{part}" for part in (["weight", "bias"] if bias else ["weight"])
    ]
    after = interpret(module, packed(refs, format))
    if format == "f32":  # a library's product is not bitwise the same for another width
        torch.testing.assert_close(after, before)
    else:
        assert torch.equal(after, before)


def formats_of(formats: tuple[str, ...]) -> dict[str, str]:
    return dict(zip((f"layers.0.{name}.weight" for name in WIDTHS), formats, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "formats",
    [("i4_g32", "q8_0", "q8_0"), ("q8_0", "i4_g32", "q8_0"), ("i5_g32", "i5_g32", "i6_g32")],
    ids=lambda formats: "-".join(formats),
)
def test_siblings_of_several_quantized_formats_become_bands(formats: tuple[str, str, str], bias: bool) -> None:
    refs = inputs(bias=bias)
    module = trace(attention_inputs, refs)
    assign_weight_kernels(module.graph, formats=formats_of(formats))
    values = {
        ref: pack(formats_of(formats)[ref.removeprefix("weight:")], value) if ref.endswith(".weight") else value
        for ref, value in refs.items()
    }
    before = interpret(module, values)
    assert merge_sibling_linears(module.graph) == 2
    module.graph.lint()
    linears = [name for name in operators(module) if name.startswith("linear")]
    assert linears == ["linear_mixed"]
    (weight,) = [node for node in module.graph.find_nodes(op="placeholder") if node.meta["ref"] == "weight:layers.0.q+k+v.weight"]
    assert weight.meta["format"] == "+".join(f"{format}:{width}" for format, width in zip(formats, WIDTHS.values(), strict=True))
    assert weight.meta["val"].shape == (sum(values[f"weight:layers.0.{name}.weight"].numel() for name in WIDTHS),)
    assert torch.equal(interpret(module, values), before)


@pytest.mark.parametrize("formats", [("q8_0", "f32", "q8_0"), ("q8_0", "q8_0", "bf16"), ("f32", "f16", "f32")], ids="-".join)
def test_others_merge_only_with_their_like(formats: tuple[str, str, str]) -> None:
    module = trace(attention_inputs, inputs(bias=False))
    assign_weight_kernels(module.graph, formats=formats_of(formats))
    assert merge_sibling_linears(module.graph) == 1
    assert "linear_mixed" not in operators(module)


def test_rows_of_several_formats_stay_apart() -> None:
    """On NVIDIA nothing reads bands."""
    module = trace(attention_inputs, inputs(bias=False))
    assign_weight_kernels(module.graph, formats=formats_of(("i4_g32", "q8_0", "q8_0")), layout="rows")
    assert merge_sibling_linears(module.graph) == 1
    assert "linear_mixed" not in operators(module)


def test_rows_are_selected_before_bands() -> None:
    def function(x: torch.Tensor, rows: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.linear(x, weight).index_select(0, rows) for weight in weights], dim=1)

    refs = inputs(bias=False)
    refs = {"input:x": refs.pop("input:x"), "input:rows": torch.tensor([2, 0])} | refs
    module = trace(function, refs)
    assign_weight_kernels(module.graph, formats=formats_of(("i4_g32", "q8_0", "q8_0")))
    assert merge_sibling_linears(module.graph) == 2
    assert select_rows_early(module.graph) > 0
    (mixed,) = module.graph.find_nodes(op="call_function", target=torch.ops.engine.linear_mixed.default)
    assert mixed.meta["val"].shape == (2, sum(WIDTHS.values()))


@pytest.mark.parametrize(("format", "linears"), [("f32", ["linear_dense"] * 3), ("bf16", ["linear_bf16"] * 3), ("q8_0", ["linear_mixed"])])
def test_widths_that_leave_a_panel_unfilled(format: str, linears: list[str]) -> None:
    refs = inputs(bias=False)
    refs["weight:layers.0.q.weight"] = torch.randn(24, 40)
    module = trace(attention_inputs, refs)
    assign_weight_kernels(module.graph, formats=formats_of((format,) * 3))
    before = interpret(module, packed(refs, format))
    assert merge_sibling_linears(module.graph) == 3 - len(linears)
    assert [name for name in operators(module) if name.startswith("linear")] == linears
    assert torch.equal(interpret(module, packed(refs, format)), before)


def test_a_weight_with_two_readers_stays() -> None:
    def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(x, first) + functional.linear(x, second), second)

    refs = {"input:x": torch.randn(3, 32), "weight:first": torch.randn(32, 32), "weight:second": torch.randn(32, 32)}
    module = trace(function, refs)
    assign_weight_kernels(module.graph, formats={"first": "f32", "second": "f32"})
    assert merge_sibling_linears(module.graph) == 0


def test_siblings_of_other_depths_have_a_name_in_common() -> None:
    """What is shared by all tokens beside experts, and its gate."""
    names = ("mlp.shared.gate", "mlp.shared.up", "mlp.shared_gate")
    refs = {"input:x": torch.randn(3, 64)} | {f"weight:layers.0.{name}.weight": torch.randn(16, 64) for name in names}
    module = trace(lambda x, *weights: torch.cat([functional.linear(x, weight) for weight in weights], dim=1), refs)
    assign_weight_kernels(module.graph, formats={f"layers.0.{name}.weight": "q8_0" for name in names})
    assert merge_sibling_linears(module.graph) == 2
    (merged,) = [node.meta for node in module.graph.find_nodes(op="placeholder") if "parts" in node.meta]
    assert merged["ref"] == "weight:layers.0.mlp.shared.gate+shared.up+shared_gate.weight"
    assert merged["parts"] == [f"layers.0.{name}.weight" for name in names]
