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
    (0, 0.6, 0.2),
    (10_000, 0.9, 0.0),
]
"""top_k, top_p, min_p"""


def sample(logits: Tensor, temperature: Tensor, filters: tuple[int, float, float], uniform: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernel and the reference draw."""
    count = len(logits)
    top_k, top_p, min_p = filters
    numbers = [
        temperature,
        torch.full((count,), top_k, dtype=torch.int32),
        torch.full((count,), top_p),
        torch.full((count,), min_p),
        uniform,
    ]
    return run(logits, tuple(numbers)), reference.sample(logits.double(), *(x.double() if x.is_floating_point() else x for x in numbers))


def run(logits: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
    """What the kernel draws, with numbers for temperature, top_k, top_p, min_p and uniform."""
    count, vocabulary = logits.shape
    arguments = (Given(logits, ("S", vocabulary)), *(Given(x, ("S",)) for x in numbers))
    return interpreter().run(Call(operator="sample", arguments=arguments, shape=("S",), dtype="int32", dims={"S": count}))[0]


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


def logits_with_traps(vocabulary: int) -> Tensor:
    logits = torch.randn(9, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[1] = -torch.inf
    logits[2, vocabulary // 2] = torch.inf
    logits[3, -1] = torch.nan
    logits[4] = 1.5
    logits[5, [0, vocabulary - 1]] = 100.0
    logits[6, :-1] = -torch.inf
    logits[7] = torch.nan
    logits[8, vocabulary // 3] = -torch.inf
    return logits


@pytest.mark.parametrize("vocabulary", [7, 4096, 4097, 20_000])
def test_temperature_0_takes_the_first_of_the_largest(vocabulary: int) -> None:
    """Whatever the other parameters hold: steps in which nobody samples leave them as they are."""
    logits = logits_with_traps(vocabulary)
    rubbish = torch.full((9,), torch.nan)
    numbers = (torch.zeros(9), torch.full((9,), -(2**31), dtype=torch.int32), rubbish, rubbish, rubbish)
    expected = [int(logits[0].argmax()), -1, -1, -1, 0, 0, vocabulary - 1, -1, int(logits[8].argmax())]
    assert run(logits, numbers).tolist() == expected


def test_tokens_come_as_often_as_they_are_likely() -> None:
    """Of numbers evenly spread over [0, 1), each token gets its share, but for one more or less."""
    draws, temperature, min_p = 128, 0.8, 0.06
    row = torch.linspace(-2.0, 2.0, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    spread = (torch.arange(draws) + 0.5) / draws
    actual, _ = sample(row.expand(draws, -1).contiguous(), torch.full((draws,), temperature), (0, 1.0, min_p), spread)
    likelihood = (row.double() / temperature).softmax(0)
    likelihood[likelihood < min_p * likelihood.max()] = 0
    assert int((likelihood > 0).sum()) == 7
    expected = draws * likelihood / likelihood.sum()
    counts = torch.bincount(actual.long(), minlength=12)
    assert not counts[expected == 0].any()
    assert (counts - expected).abs().max() <= 1
