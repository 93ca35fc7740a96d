"""fuse_head_scale: what becomes one operator, and what is no number for each head."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from traced_graphs import interpret, operators, trace

from engine.passes.fuse_head_scale import fuse_head_scale


def values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"input:x": (5, 3, 16), "input:factors": (5, 3), "input:vector": (3,), "input:angles": (5, 16)}
    return {ref: torch.randn(shape, generator=generator) for ref, shape in shapes.items()}


@pytest.mark.parametrize("turned", [False, True])
def test_a_number_for_each_head(turned: bool) -> None:
    def gated(x: Tensor, factors: Tensor, vector: Tensor, angles: Tensor) -> Tensor:
        numbers = factors.unsqueeze(2)
        return (numbers * x if turned else x * numbers).view(-1, 48)

    given = values()
    module = trace(gated, given)
    assert fuse_head_scale(module.graph) == 1
    assert operators(module) == ["scale_heads", "aten.view"]
    assert torch.equal(interpret(module, given), gated(*given.values()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, factors, vector, angles: x * vector.unsqueeze(0).unsqueeze(2),
        lambda x, factors, vector, angles: x * factors[:, :1].unsqueeze(2),
        lambda x, factors, vector, angles: x * angles.unsqueeze(1),
        lambda x, factors, vector, angles: angles * x[:, 0],
        lambda x, factors, vector, angles: x * factors.view(3, 5).t().unsqueeze(2),  # as experts and tokens lie in a table
    ],
)
def test_other_products_stay(function: Callable[..., Tensor]) -> None:
    module = trace(function, values())
    assert fuse_head_scale(module.graph) == 0
