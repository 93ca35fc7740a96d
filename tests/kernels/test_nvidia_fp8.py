"""FP8 for NVIDIA, interpreted: quantizing rows, alone or after a norm or an activation, and the linears that read them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, interpreter, worst_error

from engine.kernels.nvidia import reference
from engine.kernels.nvidia.fp8 import pack_fp8, quantize_fp8, scales_of_rows, unpack_fp8
from engine.kernels.nvidia.packed_rows import FP8_FORMATS, FP8_LAYOUTS, FP8_STATIC, fp8_in_features, fp8_row_bytes, packed_shape
from engine.kernels.row_references import ROW_REFERENCES

EPS = 1e-5
TOKENS = [1, 7, 17, 70]
ORDER = 4
"""Sums of the same products in another order may be this much worse than torch's."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3).bfloat16()


def run(operator: str, *arguments: object, count: int, size: int, dtype: str = "uint8") -> Tensor:
    call = Call(operator=operator, arguments=arguments, shape=("T", size), dtype=dtype, dims={"T": count})
    return interpreter().run(call)[0]


def scale_of(format: str) -> tuple[Tensor, ...]:
    """Such that some of `numbers` are out of range, and some below the smallest normal number."""
    return (torch.tensor([0.013]),) if format == FP8_STATIC else ()


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


@pytest.mark.parametrize("format", FP8_LAYOUTS)
def test_quantizing_loses_a_sixteenth_at_most(format: str) -> None:
    x = numbers(9, 384)
    back = unpack_fp8(format, quantize_fp8(format, x), 384)
    smallest_normal = x.float().abs().amax(1, keepdim=True) / 448 * 2**-6
    assert ((back - x.float()).abs() <= x.float().abs().clamp_min(smallest_normal) / 16 * (1 + 2**-20)).all()


@pytest.mark.parametrize("features", [128, 640])
@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("count", TOKENS)
def test_quantize_is_the_reference_bit_for_bit(count: int, format: str, features: int) -> None:
    x, scale = numbers(count, features + 16)[:, 8 : 8 + features], scale_of(format)
    x[0, :128] = 0
    actual = run(f"quantize_{format}", Given(x, ("T", features)), *map(Given, scale), count=count, size=fp8_row_bytes(format, features))
    assert torch.equal(without_padding(format, actual, features), without_padding(format, quantize_fp8(format, x, *scale), features))


def test_a_given_scale_is_divided_by_and_what_is_out_of_range_is_the_largest_number() -> None:
    """A row of 2,064 is that of three programs, the last of which has little to do. FP8 ends at 448 and begins at 2^-9."""
    x, expected = torch.zeros(3, 2064, dtype=torch.bfloat16), torch.zeros(3, 2064)
    x[:, :10] = torch.tensor([1.0, -3.0, 224.0, 232.0, -1e6, torch.inf, -torch.inf, torch.nan, 2**-10, -(2**-11)])
    expected[:, :10] = torch.tensor([1.0, -3.0, 224.0, 224.0, -224.0, 224.0, -224.0, torch.nan, 2**-10, 0.0])
    x[1, -1], expected[1, -1] = 17, 16  # 34 lies between 32 and 36
    scale = torch.tensor([0.5])
    actual = run("quantize_fp8_tensor", Given(x, ("T", 2064)), Given(scale), count=3, size=fp8_row_bytes(FP8_STATIC, 2064))
    for rows in (actual, quantize_fp8(FP8_STATIC, x, scale)):
        assert (rows[:, 2064:2068].contiguous().view(torch.float32) == 0.5).all()
        torch.testing.assert_close(unpack_fp8(FP8_STATIC, rows, 2064), expected, rtol=0, atol=0, equal_nan=True)


def quants_apart(actual: Tensor, expected: Tensor, features: int) -> int:
    """By how many steps of float8_e4m3fn two rows of numbers differ at most."""

    def steps(packed: Tensor) -> Tensor:
        bits = packed[:, :features].int()
        return torch.where(bits >= 128, 128 - bits, bits)

    return int((steps(actual) - steps(expected)).abs().max())


@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "silu_mul", "gelu_tanh_mul", "sigmoid", "relu2", "xielu"])
@pytest.mark.parametrize("count", [1, 7])
def test_a_row_operator_quantizes_its_unrounded_result(count: int, name: str, format: str) -> None:
    x, size, scale = numbers(count, 640), fp8_row_bytes(format, 640), scale_of(format)
    arguments = row_arguments(name, x)
    twin = run(f"{name}_quantize_{format}", Given(x, ("T", 640)), *map(given, arguments), *map(Given, scale), count=count, size=size)
    values = ROW_REFERENCES[name](x.double(), *(number.double() if isinstance(number, Tensor) else number for number in arguments))
    expected = quantize_fp8(format, values, *scale)
    assert quants_apart(twin, expected, 640) <= 1  # float32 may end on the other side of a tie
    errors = [worst_error(unpack_fp8(format, packed, 640), values) for packed in (twin, expected)]
    assert errors[0] <= errors[1] * (1 + 2**-10)


def row_arguments(name: str, x: Tensor) -> tuple[object, ...]:
    """What the operator takes after x."""
    other, vector = numbers(*x.shape, seed=1), numbers(x.shape[1], seed=2).float()
    if name == "xielu":
        return tuple(torch.tensor([parameter]) for parameter in (0.8, 0.3, 0.5, -1e-6))
    if "norm" in name:
        return (vector, *((vector.flip(0),) if name == "layer_norm" else ()), other, EPS)
    return (other,) if name.endswith("_mul") else ()


def given(argument: object) -> object:
    if not isinstance(argument, Tensor):
        return argument
    return Given(argument, ("T", argument.shape[1])) if argument.dim() == 2 else Given(argument)


def weight(format: str, features: int, inputs: int) -> Tensor:
    values = numbers(features, inputs, seed=4)
    if format == "fp8_channel":
        return quantize_fp8(format, values)
    scales = torch.rand(-(-features // 128), inputs // 128, generator=torch.Generator().manual_seed(5)) + 0.1
    return pack_fp8(format, values.to(torch.float8_e4m3fn), scales_of_rows(scales, features))


def linear(format: str, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, multiplier: float = 1.0) -> Call:
    features = w.shape[0]
    added = (bias if bias is None else Given(bias), residual if residual is None else Given(residual, ("T", features)))
    arguments = (Given(x, ("T", x.shape[1])), Given(w), *added, features, multiplier)
    return Call(operator=f"logits_rows_{format}", arguments=arguments, shape=("T", features), dtype="float32", dims={"T": len(x)})


@pytest.mark.parametrize(("features", "inputs"), [(100, 256), (150, 1152)])
@pytest.mark.parametrize("format", FP8_LAYOUTS)
@pytest.mark.parametrize("count", [1, 16, 17, 70])
def test_linear(count: int, format: str, features: int, inputs: int) -> None:
    x, w = quantize_fp8(format, numbers(count, inputs)), weight(format, features, inputs)
    bias, residual = numbers(features, seed=2).float(), numbers(count, features, seed=3)
    call = linear(format, x, w, bias, residual, 0.3)
    plain = unpack_fp8(format, x, inputs), unpack_fp8(format, w, inputs)
    exact = reference.linear(plain[0].double(), plain[1], bias, residual, 0.3)
    allowed = ORDER * worst_error(reference.logits_rows(format, x, w, bias, residual, features, 0.3), exact)
    for multiprocessors in {132, 1 if count > 64 else 132}:
        actual = interpreter().run(replace(call, device=replace(H200, multiprocessors=multiprocessors)))[0]
        assert worst_error(actual, exact) <= allowed


@pytest.mark.parametrize("format", FP8_LAYOUTS)
@pytest.mark.parametrize("count", [7, 40])
def test_rows_are_alone_and_results_repeat(count: int, format: str) -> None:
    x, w = quantize_fp8(format, numbers(count, 1152)), weight(format, 70, 1152)
    whole = interpreter().run(linear(format, x, w, None, None))[0]
    assert torch.equal(interpreter().run(linear(format, x, w, None, None))[0], whole)
    lonely = torch.full_like(x, 0xFF)
    lonely[5] = x[5]
    assert torch.equal(interpreter().run(linear(format, lonely, w, None, None))[0][5], whole[5])
