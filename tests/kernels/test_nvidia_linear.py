"""Dense linear for NVIDIA, interpreted, in all its ranges of rows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, emit, holds, interpreter, worst_error

from engine.kernels.nvidia import reference

TOKENS = [1, 2, 7, 16, 17, 64, 65, 70]
SHAPES = [(100, 200, 132), (130, 1032, 132), (130, 72, 4), (70, 72, 1)]
"""N, K, multiprocessors: the second with K split among programs, the last two with more of N per program."""
ORDER = 4
"""Sums of the same float32 products in another order may be this much worse than torch's."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def linear(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, dtype: str, multiplier: float = 1.0) -> Call:
    features = w.shape[0]
    added = (bias if bias is None else Given(bias), residual if residual is None else Given(residual, ("T", features)))
    arguments = (Given(x, ("T", x.shape[1])), Given(w), *added, features, multiplier)
    return Call(operator="linear_rows_dense", arguments=arguments, shape=("T", features), dtype=dtype, dims={"T": len(x)})


@pytest.mark.parametrize(("features", "inputs", "multiprocessors"), SHAPES)
@pytest.mark.parametrize("count", TOKENS)
def test_values(count: int, features: int, inputs: int, multiprocessors: int) -> None:
    x, w = numbers(count, inputs + 16)[:, 8 : 8 + inputs], numbers(features, inputs, seed=1)
    bias, residual = numbers(features, seed=2), numbers(count, 2 * features, seed=3)[:, features:]
    call = replace(linear(x, w, bias, residual, "float32", 0.3), device=replace(H200, multiprocessors=multiprocessors))
    actual = interpreter().run(call)[0]
    exact = reference.linear(x.double(), w, bias, residual, 0.3)
    assert worst_error(actual, exact) <= ORDER * worst_error(reference.linear(x.float(), w, bias, residual, 0.3), exact)
    assert torch.equal(interpreter().run(replace(call, dtype="bfloat16"))[0], actual.bfloat16())


@pytest.mark.parametrize("count", [7, 40, 150])
def test_rows_are_alone_and_results_repeat(count: int) -> None:
    x, w = numbers(count, 1040), numbers(136, 1040, seed=1)
    whole = interpreter().run(linear(x, w, None, None, "float32"))[0]
    again = interpreter().run(linear(x, w, None, None, "float32"))[0]
    assert torch.equal(whole, again)
    lonely = torch.full_like(x, torch.nan)
    lonely[5] = x[5]
    assert torch.equal(interpreter().run(linear(lonely, w, None, None, "float32"))[0][5], whole[5])


@pytest.mark.parametrize("count", [70, 300])
def test_large_tiles(count: int) -> None:
    x, w, residual = numbers(count, 200), numbers(300, 200, seed=1), numbers(count, 300, seed=2)
    one = replace(linear(x, w, None, residual, "float32"), device=replace(H200, multiprocessors=1))
    (launch,) = (launch for launch in emit(one)[0] if holds(launch, one.dims))
    assert launch.constants["BLOCK_N"] == (256 if count > 128 else 128)
    exact = reference.linear(x.double(), w, None, residual)
    allowed = ORDER * worst_error(reference.linear(x.float(), w, None, residual), exact)
    assert worst_error(interpreter().run(one)[0], exact) <= allowed


def test_float16_weights() -> None:
    x, w = numbers(3, 64), numbers(40, 64, seed=1).half()
    exact = reference.linear(x.double(), w, None, None)
    assert worst_error(interpreter().run(linear(x, w, None, None, "float32"))[0], exact) < 1e-5


@pytest.mark.parametrize(("features", "inputs"), [(2048, 2048), (2048, 8192), (16_384, 2048), (128_256, 2048), (576, 1536), (8, 8)])
def test_every_number_of_rows_has_its_launches(features: int, inputs: int) -> None:
    call = linear(torch.empty(1, inputs, dtype=torch.bfloat16), torch.empty(features, inputs, dtype=torch.bfloat16), None, None, "bfloat16")
    launches, _, _ = emit(call)
    for count in (1, 16, 17, 64, 65, 128, 129, 300, 1000, 2048, 3000, 8192):
        names = [launch.function.__name__ for launch in launches if holds(launch, {"T": count})]
        assert names in (["few_rows_kernel"], ["tile_kernel"], ["tile_kernel", "add_splits_kernel"]), count


def test_decode_fills_the_device_without_a_second_launch() -> None:
    for features, inputs in ((2048, 2048), (4096, 14_336), (16_384, 2048)):
        x, w = torch.empty(1, inputs, dtype=torch.bfloat16), torch.empty(features, inputs, dtype=torch.bfloat16)
        (launch,) = (launch for launch in emit(linear(x, w, None, None, "bfloat16"))[0] if holds(launch, {"T": 1}))
        assert launch.grid[0] >= 0.9 * H200.multiprocessors
