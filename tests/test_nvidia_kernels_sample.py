"""Sampling for NVIDIA, interpreted: the very tokens of the float64 reference, whatever the filters."""

import pytest
import torch
from torch import Tensor
from triton_launches import Call, Given, interpreter

from engine.kernels.nvidia import reference

FILTERS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (5, 1.0, 0.0),
    (0, 0.5, 0.0),
    (0, 0.95, 0.0),
    (0, 0.0, 0.0),
    (0, 1.0, 0.1),
    (20, 0.8, 0.05),
    (10_000, 0.9, 0.0),
]
"""top_k, top_p, min_p"""


def sample(logits: Tensor, temperature: Tensor, filters: tuple[int, float, float], uniform: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernel and the reference draw."""
    count, vocabulary = logits.shape
    top_k, top_p, min_p = filters
    numbers = [
        temperature,
        torch.full((count,), top_k, dtype=torch.int32),
        torch.full((count,), top_p),
        torch.full((count,), min_p),
        uniform,
    ]
    arguments = (Given(logits, ("S", vocabulary)), *(Given(x, ("S",)) for x in numbers))
    call = Call(operator="sample", arguments=arguments, shape=("S",), dtype="int32", dims={"S": count})
    return interpreter().run(call)[0], reference.sample(logits.double(), *(x.double() if x.is_floating_point() else x for x in numbers))


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("vocabulary", [50, 9000])
def test_tokens_are_the_references(vocabulary: int, filters: tuple[int, float, float]) -> None:
    source = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(4, vocabulary, generator=source) * 3
    temperature = torch.tensor([1.0, 0.7, 2.0, 0.0])
    actual, expected = sample(logits, temperature, filters, torch.rand(4, generator=source))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("filters", [(3, 1.0, 0.0), (0, 0.3, 0.0), (6, 0.5, 0.0), (0, 1.0, 0.5)])
def test_of_equals_the_lower_ids_are_kept(filters: tuple[int, float, float]) -> None:
    row = torch.tensor([0.0, 1.0, -0.0, 1.0, 1.0, -5.0, 1.0, 1.0, 1.0, 0.0, -torch.inf])
    uniform = torch.linspace(0, 0.999, 16)
    actual, expected = sample(row.expand(16, -1).contiguous(), torch.ones(16), filters, uniform)
    assert torch.equal(actual, expected)
    assert len(set(actual.tolist())) > 1


def test_rows_without_a_choice() -> None:
    logits = torch.zeros(4, 50)
    logits[0, 7] = torch.nan
    logits[1] = -torch.inf
    logits[2, 3] = torch.inf
    logits[3, 1:] = -torch.inf
    actual, _ = sample(logits, torch.ones(4), (0, 1.0, 0.0), torch.full((4,), 0.999))
    assert actual.tolist() == [-1, -1, -1, 0]
