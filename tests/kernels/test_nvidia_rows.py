"""Row operators and embedding for NVIDIA, interpreted: no further from the exact values than bfloat16 arithmetic."""

import pytest
import torch
from torch import Tensor
from triton_launches import Call, Given, interpreter, worst_error

from engine.kernels.nvidia import reference

EPS = 1e-5
TOKENS = [1, 2, 7, 70]


def rows(count: int, features: int, seed: int = 0) -> Tensor:
    return (torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * 3).bfloat16()


def run(operator: str, *arguments: object, count: int, features: int, dtype: str = "bfloat16") -> Tensor:
    call = Call(operator=operator, arguments=arguments, shape=("T", features), dtype=dtype, dims={"T": count})
    return interpreter().run(call)[0]


@pytest.mark.parametrize("features", [1, 100, 576, 2048])
@pytest.mark.parametrize("count", TOKENS)
def test_rms_norm(count: int, features: int) -> None:
    wide, weight = rows(count, features + 24), rows(1, features, 1)[0].float()
    x = wide[:, 16 : 16 + features]
    actual = run("rms_norm", Given(x, ("T", features)), Given(weight), EPS, count=count, features=features)
    exact = reference.rms_norm_rows(x.double(), weight.double(), EPS)
    assert worst_error(actual, exact) <= worst_error(exact.bfloat16(), exact) * (1 + 2**-6)


@pytest.mark.parametrize("features", [1, 100, 1536])
@pytest.mark.parametrize("count", TOKENS)
def test_silu_mul_of_the_halves_of_a_row(count: int, features: int) -> None:
    both = rows(count, 2 * features)
    halves = both[:, :features], both[:, features:]
    actual = run("silu_mul", *(Given(half, ("T", features)) for half in halves), count=count, features=features)
    exact = reference.silu_mul(*(half.double() for half in halves))
    assert worst_error(actual, exact) <= worst_error(exact.bfloat16(), exact) * (1 + 2**-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_embedding_copies_rows_and_stays_inside(dtype: str) -> None:
    table = rows(50, 1100)
    tokens = torch.tensor([3, 49, 0, -1, 50, 2**31 - 1], dtype=torch.int32)
    actual = run("embedding_rows_dense", Given(tokens, ("T",)), Given(table), 1100, count=6, features=1100, dtype=dtype)
    assert torch.equal(actual, table[[3, 49, 0, 0, 49, 49]].to(actual.dtype))
