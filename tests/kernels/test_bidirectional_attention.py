"""Attention of whole texts, and the mean of their rows: right against float64, and the same bits whatever else is computed beside them."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels import mean_pool
from engine.kernels.attention import reference
from engine.kernels.attention.options import AttentionOptions
from engine.kernels.cut_operators import BIDIRECTIONAL_ATTENTION

pytestmark = pytest.mark.usefixtures("kernel_library")

LENGTHS = (1, 5, 40, 129, 260)
"""Within a block and across several, a tile and one key more, several tiles."""


def inputs(lengths: Sequence[int], *, query: int = 6, key: int = 2, dim: int = 32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    given = {"q": torch.randn(total, query, dim, generator=generator)}
    given |= {name: torch.randn(total, key, dim, generator=generator) for name in "kv"}
    return given | {"cu_seqlens": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)}


def rotation(lengths: Sequence[int], width: int) -> dict[str, Tensor]:
    positions = torch.cat([torch.arange(length) for length in lengths])[:, None] * 100.0 ** -torch.linspace(0, 1, width // 2)
    return {"cos": positions.cos(), "sin": positions.sin()}


def run(given: dict[str, Tensor], options: AttentionOptions) -> Tensor:
    tensors = [given.get(name) for name in (*BIDIRECTIONAL_ATTENTION.tensors, *BIDIRECTIONAL_ATTENTION.optional)]
    out: Tensor = torch.ops.engine.bidirectional_attention(*tensors, *options.scalars())
    return out


def exact(given: dict[str, Tensor], options: AttentionOptions) -> Tensor:
    doubled: dict[str, Any] = {name: tensor if name == "cu_seqlens" else tensor.double() for name, tensor in given.items()}
    return reference.bidirectional_attention(**doubled, options=options)


@pytest.mark.parametrize("window", [0, 1, 17, 128])
@pytest.mark.parametrize("dim", [32, 24])
def test_it_is_the_reference(window: int, dim: int) -> None:
    given, options = inputs(LENGTHS, dim=dim), AttentionOptions(scale=dim**-0.5, window=window)
    torch.testing.assert_close(run(given, options), exact(given, options).float(), rtol=2e-5, atol=2e-6)


def test_it_is_the_reference_with_norms_rotation_sinks_and_scales() -> None:
    given = inputs(LENGTHS) | rotation(LENGTHS, 16)
    given |= {"q_norm": torch.linspace(0.5, 2, 32), "k_norm": torch.linspace(2, 0.5, 32), "sinks": torch.linspace(-3, 6, 6)}
    given |= {"q_scale": 1 + 0.1 * torch.arange(sum(LENGTHS)).float().log1p()}
    options = AttentionOptions(scale=32**-0.5, window=64, softcap=20.0, eps=1e-5)
    torch.testing.assert_close(run(given, options), exact(given, options).float(), rtol=1e-4, atol=1e-5)


def test_a_text_has_the_same_bits_alone_and_among_others_and_on_any_number_of_threads() -> None:
    given, options = inputs(LENGTHS), AttentionOptions(scale=0.2, window=90)
    together, threads = run(given, options), torch.get_num_threads()
    starts = given["cu_seqlens"].tolist()
    for (first, last), length in zip(itertools.pairwise(starts), LENGTHS, strict=True):
        alone = {name: given[name][first:last] for name in "qkv"} | {"cu_seqlens": torch.tensor([0, length], dtype=torch.int32)}
        assert torch.equal(run(alone, options), together[first:last])
    torch.set_num_threads(1)
    assert torch.equal(run(given, options), together)
    torch.set_num_threads(threads)


def test_rows_of_no_text_are_zero() -> None:
    given = inputs([7, 3])
    given["cu_seqlens"] = torch.tensor([0, 7], dtype=torch.int32)
    assert torch.count_nonzero(run(given, AttentionOptions(scale=0.2))[7:]) == 0


@pytest.mark.parametrize(("change", "message"), [({"chunk": 8}, "chunks"), ({"window": -1}, "negative")])
def test_what_it_cannot_compute_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(inputs([4]), AttentionOptions(scale=0.2, **change))


@pytest.mark.parametrize("starts", [[0, 9], [1, 4], [0, 3, 2]])
def test_texts_that_do_not_fit_the_tokens_are_refused(starts: list[int]) -> None:
    with pytest.raises(RuntimeError, match=r"cu_seqlens|negative"):
        run(inputs([4]) | {"cu_seqlens": torch.tensor(starts, dtype=torch.int32)}, AttentionOptions(scale=0.2))


def means(x: Tensor, lengths: Sequence[int]) -> Tensor:
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return mean_pool.mean_pool(x, starts, torch.tensor(lengths, dtype=torch.int32))


def test_means_are_those_of_the_reference_and_do_not_depend_on_other_texts() -> None:
    x = torch.randn(sum(LENGTHS), 50, generator=torch.Generator().manual_seed(3))
    starts = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    together = means(x, LENGTHS)
    torch.testing.assert_close(together, mean_pool.reference(x, starts, torch.tensor(LENGTHS)), rtol=1e-5, atol=1e-6)
    for row, (first, last) in enumerate(itertools.pairwise(starts.tolist())):
        assert torch.equal(means(x[first:last], [last - first])[0], together[row])


@pytest.mark.parametrize("lengths", [[3, 9], [0, 4]])
def test_means_of_texts_that_are_not_there_are_refused(lengths: list[int]) -> None:
    with pytest.raises(RuntimeError, match=r"cu_seqlens|as a whole"):
        means(torch.zeros(4, 8), lengths)
