"""FP8 for NVIDIA, interpreted: quantizing rows, alone or after a norm or an activation, and the linears that read them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, interpreter, worst_error

from engine.kernels.nvidia import reference
from engine.kernels.nvidia.fp8 import pack_fp8, quantize_fp8, scales_of_rows, unpack_fp8
from engine.kernels.nvidia.packed_rows import FP8_FORMATS, fp8_in_features, fp8_row_bytes, packed_shape

EPS = 1e-5
TOKENS = [1, 7, 17, 70]
ORDER = 4
"""Sums of the same products in another order may be this much worse than torch's."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3).bfloat16()


def run(operator: str, *arguments: object, count: int, size: int, dtype: str = "uint8") -> Tensor:
    call = Call(operator=operator, arguments=arguments, shape=("T", size), dtype=dtype, dims={"T": count})
    return interpreter().run(call)[0]


def without_padding(format: str, packed: Tensor, features: int) -> Tensor:
    return packed[:, : features + 4 * (features // 128 if format == "fp8_block" else 1)]


@pytest.mark.parametrize("features", [128, 384, 1024, 2048])
@pytest.mark.parametrize("format", FP8_FORMATS)
def test_row_sizes(format: str, features: int) -> None:
    size = fp8_row_bytes(format, features)
    assert size % 16 == 0
    assert fp8_in_features(format, size) == features
    assert packed_shape(format, 5, features) == (5, size)


@pytest.mark.parametrize("features", [512 * n + 128 * m for n in range(3) for m in (1, 2, 3, 4)])
def test_sizes_of_blockwise_rows_tell_their_features(features: int) -> None:
    assert fp8_in_features("fp8_block", fp8_row_bytes("fp8_block", features)) == features


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_quantizing_loses_a_sixteenth_at_most(format: str) -> None:
    x = numbers(9, 384)
    back = unpack_fp8(format, quantize_fp8(format, x), 384)
    smallest_normal = x.float().abs().amax(1, keepdim=True) / 448 * 2**-6
    assert ((back - x.float()).abs() <= x.float().abs().clamp_min(smallest_normal) / 16 * (1 + 2**-20)).all()


@pytest.mark.parametrize("features", [128, 640])
@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("count", TOKENS)
def test_quantize_is_the_reference_bit_for_bit(count: int, format: str, features: int) -> None:
    x = numbers(count, features + 16)[:, 8 : 8 + features]
    x[0, :128] = 0
    actual = run(f"quantize_{format}", Given(x, ("T", features)), count=count, size=fp8_row_bytes(format, features))
    assert torch.equal(without_padding(format, actual, features), without_padding(format, quantize_fp8(format, x), features))


def quants_apart(actual: Tensor, expected: Tensor, features: int) -> int:
    """By how many steps of float8_e4m3fn two rows of numbers differ at most."""

    def steps(packed: Tensor) -> Tensor:
        bits = packed[:, :features].int()
        return torch.where(bits >= 128, 128 - bits, bits)

    return int((steps(actual) - steps(expected)).abs().max())


@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("count", [1, 7])
def test_norm_and_activation_quantize_their_unrounded_result(count: int, format: str) -> None:
    x, up, weight, size = numbers(count, 640), numbers(count, 640, seed=1), numbers(640, seed=2).float(), fp8_row_bytes(format, 640)
    normed = run(f"rms_norm_quantize_{format}", Given(x, ("T", 640)), Given(weight), EPS, count=count, size=size)
    active = run(f"silu_mul_quantize_{format}", Given(x, ("T", 640)), Given(up, ("T", 640)), count=count, size=size)
    exact = reference.rms_norm_rows(x.double(), weight.double(), EPS), reference.silu_mul(x.double(), up.double())
    for actual, values in zip((normed, active), exact, strict=True):
        expected = quantize_fp8(format, values)
        assert quants_apart(actual, expected, 640) <= 1  # float32 may end on the other side of a tie
        errors = [worst_error(unpack_fp8(format, packed, 640), values) for packed in (actual, expected)]
        assert errors[0] <= errors[1] * (1 + 2**-10)


def weight(format: str, features: int, inputs: int) -> Tensor:
    values = numbers(features, inputs, seed=4)
    if format == "fp8_channel":
        return quantize_fp8(format, values)
    scales = torch.rand(-(-features // 128), inputs // 128, generator=torch.Generator().manual_seed(5)) + 0.1
    return pack_fp8(format, values.to(torch.float8_e4m3fn), scales_of_rows(scales, features))


def linear(format: str, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None) -> Call:
    features = w.shape[0]
    added = (bias if bias is None else Given(bias), residual if residual is None else Given(residual, ("T", features)))
    arguments = (Given(x, ("T", x.shape[1])), Given(w), *added, features)
    return Call(operator=f"logits_rows_{format}", arguments=arguments, shape=("T", features), dtype="float32", dims={"T": len(x)})


@pytest.mark.parametrize(("features", "inputs"), [(100, 256), (150, 1152)])
@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("count", [1, 16, 17, 70])
def test_linear(count: int, format: str, features: int, inputs: int) -> None:
    x, w = quantize_fp8(format, numbers(count, inputs)), weight(format, features, inputs)
    bias, residual = numbers(features, seed=2).float(), numbers(count, features, seed=3)
    call = linear(format, x, w, bias, residual)
    plain = unpack_fp8(format, x, inputs), unpack_fp8(format, w, inputs)
    exact = reference.linear(plain[0].double(), plain[1], bias, residual)
    allowed = ORDER * worst_error(reference.logits_rows(format, x, w, bias, residual, features), exact)
    for multiprocessors in {132, 1 if count > 64 else 132}:
        actual = interpreter().run(replace(call, device=replace(H200, multiprocessors=multiprocessors)))[0]
        assert worst_error(actual, exact) <= allowed


@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("count", [7, 40])
def test_rows_are_alone_and_results_repeat(count: int, format: str) -> None:
    x, w = quantize_fp8(format, numbers(count, 1152)), weight(format, 70, 1152)
    whole = interpreter().run(linear(format, x, w, None, None))[0]
    assert torch.equal(interpreter().run(linear(format, x, w, None, None))[0], whole)
    lonely = torch.full_like(x, 0xFF)
    lonely[5] = x[5]
    assert torch.equal(interpreter().run(linear(format, lonely, w, None, None))[0][5], whole[5])
