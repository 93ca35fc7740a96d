"""A feed-forward layer through all its rewrites; fuse_residual_add and fuse_quantize where they must not fire."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from traced_graphs import interpret, operators, pack, trace

from engine.models.parts.norm import RMSNorm
from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.fuse_activation import fuse_activation
from engine.passes.fuse_gate import fuse_gate
from engine.passes.fuse_quantize import fuse_quantize
from engine.passes.fuse_residual_add import fuse_residual_add
from engine.passes.fuse_rms_norm import fuse_rms_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return RMSNorm.forward(SimpleNamespace(weight=weight, eps=1e-5), x)  # type: ignore[arg-type]


def layer(x: torch.Tensor, norm: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    y = rms_norm(x, norm)
    return x + functional.linear(functional.silu(functional.linear(y, gate)) * functional.linear(y, up), down)


def refs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "input:x": random(5, 64),
        "weight:norm": random(64),
        "weight:gate": random(96, 64),
        "weight:up": random(96, 64),
        "weight:down": random(64, 96),
    }


@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0", "w8a8"])
def test_a_feed_forward_layer(format: str) -> None:
    values = refs()
    module = trace(layer, values)
    assign_weight_kernels(module.graph, formats=dict.fromkeys(("gate", "up", "down"), format))
    values |= {ref: pack(format, values[ref]) for ref in ("weight:gate", "weight:up", "weight:down")}
    before = interpret(module, values)
    assert [rewrite(module.graph) for rewrite in (fuse_residual_add, fuse_rms_norm, fuse_activation, fuse_gate)] == [1, 1, 1, 1]
    kernel, quantize = {
        "f32": ("dense", ""),
        "bf16": ("bf16", "_round_bf16"),
        "q8_0": ("q8_0", "_quantize"),
        "w8a8": ("w8a8", "_quantize_rows"),
    }[format]
    assert fuse_quantize(module.graph) == (2 if quantize else 0)
    module.graph.lint()
    linear = f"linear_{kernel}"
    assert operators(module) == [f"rms_norm{quantize}", linear, linear, f"silu_mul{quantize}", linear]
    torch.testing.assert_close(interpret(module, values), before)


def test_what_is_also_read_unquantized_is_quantized_apart() -> None:
    def also_plain(x: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = rms_norm(x, norm)
        return functional.linear(y, weight) * y

    module = trace(also_plain, {"input:x": torch.randn(5, 64), "weight:norm": torch.ones(64), "weight:w": torch.randn(64, 64)})
    assign_weight_kernels(module.graph, formats={"w": "q8_0"})
    assert fuse_rms_norm(module.graph) == 1
    assert fuse_quantize(module.graph) == 0
    assert operators(module) == ["rms_norm", "quantize", "linear_q8_0", "aten.mul.Tensor"]


def test_additions_that_are_no_residual_stay() -> None:
    def broadcast(x: torch.Tensor, row: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return row + functional.linear(x, weight)

    def read_twice(x: torch.Tensor, row: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, weight)
        return (x + y) * y

    for function in (broadcast, read_twice):
        module = trace(function, {"input:x": torch.randn(5, 64), "weight:row": torch.randn(64), "weight:w": torch.randn(64, 64)})
        assign_weight_kernels(module.graph, formats={"w": "f32"})
        assert fuse_residual_add(module.graph) == 0


def test_of_two_linears_the_later_one_takes_the_sum() -> None:
    def function(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, first) + functional.linear(x, second)

    values = {"input:x": torch.randn(5, 64), "weight:first": torch.randn(64, 64), "weight:second": torch.randn(64, 64)}
    module = trace(function, values)
    assign_weight_kernels(module.graph, formats={"first": "f32", "second": "f32"})
    values |= {ref: pack("f32", values[ref]) for ref in ("weight:first", "weight:second")}
    before = interpret(module, values)
    assert fuse_residual_add(module.graph) == 1
    module.graph.lint()
    torch.testing.assert_close(interpret(module, values), before)
