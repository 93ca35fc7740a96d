"""From floats to blocks: as good as any choice of a scale and a minimum, counted by importance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels.linear.formats import pack_blocks, unpack
from engine.kernels.linear.quantize import fit, quantize

OURS = ["i4_g32", "i5_g32", "i6_g32"]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values_of(blocks: Tensor) -> Tensor:
    """What `fit` gives of blocks, as floats [N, K]."""
    groups = (blocks.shape[1] - 8) // 34
    numbers, scales, minima, codes = blocks.split((8, groups, groups, 32 * groups), dim=1)
    d, m = numbers.contiguous().view(torch.float32).split(1, dim=1)
    values: Tensor = ((d * scales)[:, :, None] * codes.unflatten(1, (-1, 32)) - (m * minima)[:, :, None]).flatten(1)
    return values


def lost(x: Tensor, values: Tensor, importance: Tensor) -> Tensor:
    """Of every row, whose weights are one block."""
    return ((values - x).square() * importance).sum(1)


def best_of_many(x: Tensor, importance: Tensor, bits: int) -> Tensor:
    """The least that any scale and minimum of a fine grid loses, of every row."""
    top = 2**bits - 1
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    least = torch.full((len(x),), torch.inf)
    for below in torch.linspace(-0.03, 0.4, 44):
        for above in torch.linspace(-0.03, 0.4, 44):
            m = low + (high - low) * below
            d = (high - (high - low) * above - m) / top
            least = torch.minimum(least, lost(x, ((x - m) / d).round().clamp(0, top) * d + m, importance))
    return least


@pytest.mark.parametrize(("bits", "more"), [(4, 1.08), (5, 1.2)])
def test_hardly_any_scale_and_minimum_lose_less(bits: int, more: float) -> None:
    x, importance = numbers(64, 32), numbers(32, seed=1).square()
    ours = lost(x, values_of(fit(x, importance, bits)), importance)
    least = best_of_many(x, importance, bits)
    assert ours.sum() <= more * least.sum()
    assert bool((ours <= 3 * least).all())


@pytest.mark.parametrize("format", OURS)
def test_what_matters_is_rounded_best(format: str) -> None:
    x, importance = numbers(40, 192), torch.ones(192)
    importance[::7] = 100.0
    alike, weighed = (unpack(format, pack_blocks(format, quantize(format, x, given)), 40, 192) for given in (None, importance))
    assert lost(x, weighed, importance).sum() < 0.8 * lost(x, alike, importance).sum()
    assert lost(x, alike, torch.ones(192)).sum() < lost(x, weighed, torch.ones(192)).sum()


@pytest.mark.parametrize("format", OURS)
def test_importance_is_of_channels_whatever_its_size(format: str) -> None:
    x, importance = numbers(20, 192), numbers(192, seed=1).square() + 0.01
    assert torch.equal(quantize(format, x, importance), quantize(format, x, importance * 2.0**-9))


@pytest.mark.parametrize("format", OURS)
def test_rows_are_quantized_by_themselves(format: str) -> None:
    x, importance = numbers(37, 192), numbers(192, seed=1).square()
    whole = quantize(format, x, importance)
    assert torch.equal(torch.cat([quantize(format, x[:5], importance), quantize(format, x[5:], importance)]), whole)


@pytest.mark.parametrize("in_features", [1, 40, 100])
@pytest.mark.parametrize("format", OURS)
def test_rows_are_filled_up_with_what_does_not_count(format: str, in_features: int) -> None:
    x = numbers(5, in_features) * 0.1
    values = unpack(format, pack_blocks(format, quantize(format, x, torch.ones(in_features))), 5, in_features)
    assert (values - x).abs().max() <= 0.35 * (x.max() - x.min())


@settings(max_examples=30, deadline=None)
@given(bits=st.sampled_from([4, 5, 6]), scale=st.integers(-12, 12), seed=st.integers(0, 2**31))
def test_no_weight_is_further_off_than_the_clipped_part_of_its_range(bits: int, scale: int, seed: int) -> None:
    x = numbers(16, 32, seed=seed) * 2.0**scale
    spans = x.amax(1) - x.amin(1)
    assert bool(((values_of(fit(x, torch.ones(32), bits)) - x).abs().amax(1) <= spans * 0.35).all())


@pytest.mark.parametrize("format", OURS)
def test_constants_and_channels_that_do_not_count(format: str) -> None:
    constants = torch.stack([torch.full((128,), value) for value in (0.0, -0.0, 0.5, -2.0)])
    off = 2.0**-15  # d and m of a row have 16 bits
    for importance in (torch.ones(128), torch.zeros(128)):
        values = unpack(format, pack_blocks(format, quantize(format, constants, importance)), 4, 128)
        assert bool(((values - constants).abs() <= off * constants.abs()).all())


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_groups_of_a_row_may_differ_much(bits: int) -> None:
    """Groups that are rows of their own, whose scale and minimum have 16 bits, lose little less."""
    x, importance = (
        numbers(64, 256) * numbers(64, 8, seed=2).abs().clamp(min=0.1).repeat_interleave(32, dim=1),
        numbers(256, seed=1).square(),
    )
    rows = unpack(f"i{bits}_g32", pack_blocks(f"i{bits}_g32", quantize(f"i{bits}_g32", x, importance)), 64, 256)
    alone = [values_of(fit(part, counts, bits)) for part, counts in zip(x.split(32, dim=1), importance.split(32), strict=True)]
    assert lost(x, rows, importance).sum() <= 1.06 * lost(x, torch.cat(alone, dim=1), importance).sum()
