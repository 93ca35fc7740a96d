"""linear_* and embedding_*: exact against the reference, the same row in any company."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationStatus, apply_quantization_config
from compressed_tensors.quantization.lifecycle import forward as compressed_tensors
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from quantized_checkpoints import TOKEN_ACTIVATIONS, TOKEN_WEIGHTS
from torch import Tensor
from weight_blocks import block_shape, published_values, random_blocks, w8a8_rows, with_numbers

from engine.kernels.formats import PANEL_QUANTIZERS, row_activation_bytes
from engine.kernels.linear import (
    activations,
    activations_for,
    embedding,
    linear,
    linear_mixed,
    quantize_activations,
    quantize_rows,
    reference,
    round_activations,
)
from engine.kernels.linear.bands import Band, write_bands
from engine.kernels.linear.blocks import FORMATS, MOST_COLUMNS
from engine.kernels.linear.formats import pack_blocks, pack_dense, unpack

pytestmark = pytest.mark.usefixtures("kernel_library")

QUANTIZED = sorted(FORMATS)
OF_GROUPS = [format for format in QUANTIZED if not FORMATS[format].row_activations]
"""Those whose activations have a scale for each 32."""
DENSE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# One of each kind: bytes, minima, planes, two levels with scales of 16 and of 32, tables, exponents, zero points, e4m3 scales, scales
# of rows.
STORAGE = [*DENSE, "q8_0", "q4_1", "q5_0", "q2_k", "q6_k", "iq4_xs", "mxfp4", "w4_g64", "nvfp4_div", "i4_g32", "i6_g32", "w8a8"]
# rows, out features, in features: ends of panels, groups, row blocks, depth slices and leaves
SHAPES = [
    (1, 1, 32),
    (1, 17, 40),
    (2, 100, 96),
    (3, 16, 288),
    (5, 48, 31),
    (7, 33, 257),
    (11, 130, 64),
    (16, 17, 576),
    (33, 100, 600),
    (300, 49, 64),
    (9, 40, 1100),
]


EXACT = ("f32", "f16")
"""Computed in float32, in an order that the reference does not have."""


def kernel_of(storage: str) -> str:
    return "dense" if storage in EXACT else storage


def rounded(kernel: str, x: Tensor) -> Tensor:
    """What the linear takes for x, by the reference."""
    return x if kernel == "dense" else activations.QUANTIZERS[PANEL_QUANTIZERS[kernel]](x)


def packed_weight(storage: str, weight: Tensor) -> Tensor:
    if storage in DENSE:
        return pack_dense(weight.to(DENSE[storage]))
    return pack_blocks(storage, random_blocks(storage, weight.shape[0], weight.shape[1], seed=weight.shape[1]))


def expected(kernel: str, x: Tensor, w: Tensor, bias: Tensor | None, out_features: int, residual: Tensor | None = None) -> Tensor:
    """The reference, its activations quantized or rounded by the reference as well."""
    return reference.linear(kernel, rounded(kernel, x), w, bias, residual, out_features, 1.0)


def inputs(rows: int, out_features: int, in_features: int, storage: str = "f32") -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias. in_features is rounded up to whole blocks of several groups: no checkpoint has others."""
    spec = FORMATS.get(storage)
    in_features += -in_features % spec.block if spec and spec.groups > 1 else 0
    generator = torch.Generator().manual_seed(rows * 7919 + out_features * 31 + in_features)
    x = torch.randn(rows, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator)
    return x, weight, torch.randn(out_features, generator=generator)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("format", QUANTIZED)
def test_quantized_linear_is_the_reference_bit_for_bit(format: str, shape: tuple[int, int, int]) -> None:
    x, weight, bias = inputs(*shape, format)
    w = packed_weight(format, weight)
    assert torch.equal(linear(format, x, w, bias, shape[1]), expected(format, x, w, bias, shape[1]))
    assert torch.equal(linear(format, x, w, None, shape[1]), expected(format, x, w, None, shape[1]))


MIXED = ["q8_0", "q5_0", "q6_k", "i5_g32", "nvfp4_mul", "w4_g128"]
"""Some of each kind, of blocks of every size."""


@pytest.mark.parametrize("rows", [1, 2, 5, 17, 40])
@pytest.mark.parametrize("formats", list(itertools.product(MIXED, repeat=2)), ids="-".join)
def test_bands_are_linears_of_their_own_bit_for_bit(formats: tuple[str, ...], rows: int) -> None:
    for widths in ((48, 32), (40, 17), (3, 16, 33)):
        bands = [Band(format, width) for format, width in zip(itertools.cycle(formats), widths, strict=False)]
        x, _, bias = inputs(rows, sum(widths), 256)
        weights = [packed_weight(band.format, torch.empty(band.out_features, 256)) for band in bands]
        w, residual = torch.cat([each.flatten() for each in weights]), torch.randn(rows, 2 * sum(widths))[:, : sum(widths)]
        given = zip(bands, weights, bias.split(widths), residual.split(widths, dim=1), strict=True)
        own = torch.cat([linear(band.format, x, each, b, band.out_features, r, 0.3) for band, each, b, r in given], dim=1)
        assert torch.equal(linear_mixed(x, w, bias, bands, residual, 0.3), own)
        assert torch.equal(reference.linear_mixed(activations.quantize(x), w, bias, residual, write_bands(bands), 0.3), own)
        own = torch.cat([linear(band.format, x, each, None, band.out_features) for band, each in zip(bands, weights, strict=True)], dim=1)
        assert torch.equal(linear_mixed(x, w, None, bands), own)


def test_threads_change_nothing_in_bands() -> None:
    """Of so many outputs and rows that each band is several tasks."""
    x, _, bias = inputs(200, 700, 1024)
    bands = [Band("q4_k", 488), Band("i6_g32", 12), Band("q8_0", 200)]
    w = torch.cat([packed_weight(band.format, torch.empty(band.out_features, 1024)).flatten() for band in bands])
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((linear_mixed(x, w, bias, bands), linear_mixed(x[:1], w, bias, bands)))
    finally:
        torch.set_num_threads(threads)
    for many, one in results:
        assert torch.equal(many, results[0][0])
        assert torch.equal(one, many[:1])


def test_bands_of_no_rows() -> None:
    bands = [Band("q8_0", 16), Band("q5_0", 7)]
    w = torch.cat([packed_weight(band.format, torch.empty(band.out_features, 64)).flatten() for band in bands])
    assert linear_mixed(torch.empty(0, 64), w, None, bands).shape == (0, 23)


def test_wrong_bands_are_errors() -> None:
    bands = [Band("q8_0", 16), Band("q5_0", 7)]
    w = torch.cat([packed_weight(band.format, torch.empty(band.out_features, 96)).flatten() for band in bands])
    x, quantized = torch.randn(2, 96), quantize_activations(torch.randn(2, 96))
    with pytest.raises(RuntimeError, match=r"w has \d+ bytes, not"):
        linear_mixed(x, w[:-1], None, bands)
    with pytest.raises(RuntimeError, match=r"w has \d+ bytes, not"):
        linear_mixed(x[:, :64], w, None, bands)
    with pytest.raises(RuntimeError, match="not packed for 3 groups"):
        linear_mixed(x, w, None, [Band("q8_0", 16), Band("q4_k", 7)])
    with pytest.raises(RuntimeError, match="bias has 22 elements for 23 features"):
        linear_mixed(x, w, torch.randn(22), bands)
    for text, message in {
        "bf16:16+q5_0:7": "no band can have the format bf16",
        "q8_0:16+q5_0": "not q5_0",
        "q8_0:16+q5_0:7+": "not ",
        "q8_0:16+q5_0:7x": "no number of outputs: q5_0:7x",
        "q8_0:16+q5_0:": "without outputs",
        "q8_0:16+q5_0:99999999999999999999": "no number of outputs",
    }.items():
        with pytest.raises(RuntimeError, match=re.escape(message)):
            torch.ops.engine.linear_mixed(quantized, w, None, None, text, 1.0)


@pytest.mark.parametrize("format", OF_GROUPS)
def test_quantized_linear_is_near_the_exact_product(format: str) -> None:
    """The only error is the rounding of activations: half a step per element, times the weight."""
    x, weight, bias = inputs(4, 40, 320, format)
    w = packed_weight(format, weight)
    exact = reference.linear_dequantized(format, x.double(), w, bias, 40)
    step = activations.unpack(activations.quantize(x)).scales.repeat_interleave(32, dim=1)
    bound = (step[:, : x.shape[1]] / 2) @ unpack(format, w, 40, x.shape[1]).abs().T + 1e-3
    assert ((linear(format, x, w, bias, 40) - exact).abs() <= bound).all()


@pytest.mark.parametrize("format", OF_GROUPS)
def test_largest_integers_do_not_saturate(format: str) -> None:
    spec = FORMATS[format]
    for byte in (0x80, 0x7F, 0x81, 0xFF, 0x00):
        count, size = block_shape(format, 2 * spec.block)
        blocks = torch.full((16, count, size), byte, dtype=torch.uint8)
        w = pack_blocks(format, with_numbers(format, blocks, torch.ones(16, count, spec.numbers)).flatten(1))
        for x in (torch.full((9, 2 * spec.block), 127.0), torch.full((9, 2 * spec.block), -127.0)):
            assert torch.equal(linear(format, x, w, None, 16), expected(format, x, w, None, 16))
            exact = x.double() @ unpack(format, w, 16, 2 * spec.block).double().T
            assert torch.allclose(linear(format, x, w, None, 16).double(), exact, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize("code", [-128, 127])
def test_sums_over_the_widest_rows_fit(code: int, rows: int) -> None:
    codes = torch.full((16, MOST_COLUMNS), code, dtype=torch.int8)
    w = pack_blocks("w8a8", torch.cat((torch.ones(16, 1).view(torch.uint8), codes.view(torch.uint8)), dim=1))
    for value, quant in ((-127.5, -128), (127.5, 127)):
        x = torch.full((rows, MOST_COLUMNS), value)
        assert (linear("w8a8", x, w, None, 16) == code * quant * MOST_COLUMNS).all()
    wider = torch.zeros(1, 1, 16 * (4 + 2 * MOST_COLUMNS), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="do not fit into 32 bits"):
        linear("w8a8", torch.zeros(rows, 2 * MOST_COLUMNS), wider, None, 16)


def test_linears_of_w8a8_are_those_of_compressed_tensors() -> None:
    """Its own forward, which rounds activations and multiplies the rounded numbers as floats."""
    x, weight, bias = inputs(30, 48, 320)
    x *= torch.logspace(-3, 3, 30)[:, None]
    raw = w8a8_rows(weight)
    theirs, values = torch.nn.Linear(320, 48), published_values("w8a8", raw)
    theirs.weight.data, theirs.bias.data = values, bias
    scheme = {"targets": ["Linear"], "weights": TOKEN_WEIGHTS, "input_activations": TOKEN_ACTIVATIONS}
    model = torch.nn.Sequential(theirs)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}))
    theirs.quantization_status = QuantizationStatus.COMPRESSED  # weights are rounded already
    with torch.no_grad():
        (out,) = model(x[None])
    size = x.abs() @ values.abs().T + bias.abs()
    assert ((linear("w8a8", x, pack_blocks("w8a8", raw), bias, 48) - out).abs() <= 1e-5 * size).all()
    assert ((out - (x @ values.T + bias)).abs() > 1e-4 * size).any()  # or nothing would be rounded


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("storage", EXACT)
def test_dense_linear_is_as_exact_as_float32(storage: str, shape: tuple[int, int, int]) -> None:
    """Error against float64 within that of summing in order in float32, one rounding per product and per sum."""
    x, weight, bias = inputs(*shape)
    w = packed_weight(storage, weight)
    stored = unpack("dense", w, shape[1], shape[2]).double()
    exact = x.double() @ stored.T + bias
    bound = (shape[2] + 2) * 2.0**-24 * (x.abs().double() @ stored.abs().T + bias.abs())
    out = linear("dense", x, w, bias, shape[1])
    assert ((out - exact).abs() <= bound).all()
    independent = (expected("dense", x, w, bias, shape[1]) - exact).square().mean().sqrt()
    assert (out - exact).square().mean().sqrt() <= 4 * independent + 2.0**-24


@pytest.mark.parametrize("storage", STORAGE)
def test_a_row_does_not_depend_on_its_batch(storage: str) -> None:
    x, weight, bias = inputs(300, 113, 544, storage)
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    whole = linear(kernel, x, w, bias, 113)
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 13, 64, 65, 100):
        parts = [linear(kernel, part, w, bias, 113) for part in x[: 3 * rows].split(rows)]
        assert torch.equal(torch.cat(parts), whole[: 3 * rows]), rows


@pytest.mark.parametrize("storage", STORAGE)
def test_threads_change_nothing(storage: str) -> None:
    x, weight, bias = inputs(70, 200, 320, storage)
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((linear(kernel, x, w, bias, 200), linear(kernel, x[:1], w, bias, 200)))
    finally:
        torch.set_num_threads(threads)
    for many, one in results[1:]:
        assert torch.equal(many, results[0][0])
        assert torch.equal(one, results[0][1])


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_row_stays_alone(storage: str, poison: float) -> None:
    x, weight, _ = inputs(20, 40, 100, storage)
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    clean = linear(kernel, x, w, None, 40)
    poisoned = x.clone()
    poisoned[7, 50] = poison
    out = linear(kernel, poisoned, w, None, 40)
    assert not out[7].isfinite().any()
    others = [row for row in range(20) if row != 7]
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_linear_is_the_reference_bit_for_bit(shape: tuple[int, int, int]) -> None:
    x, weight, bias = inputs(*shape)
    x *= torch.logspace(-6, 6, shape[0])[:, None]
    w = pack_dense(weight.bfloat16())
    assert torch.equal(linear("bf16", x, w, bias, shape[1]), expected("bf16", x, w, bias, shape[1]))
    assert torch.equal(linear("bf16", x, w, None, shape[1]), expected("bf16", x, w, None, shape[1]))


def test_bf16_linear_is_as_exact_as_float32_with_rounded_activations() -> None:
    x, weight, bias = inputs(5, 40, 600)
    w = pack_dense(weight.bfloat16())
    given, stored = x.bfloat16().double(), unpack("bf16", w, 40, 600).double()
    bound = (600 + 2) * 2.0**-24 * (given.abs() @ stored.abs().T + bias.abs())
    assert ((linear("bf16", x, w, bias, 40) - (given @ stored.T + bias)).abs() <= bound).all()


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_numbers_below_the_smallest_normal_are_zeros_in_bf16_products_and_sums(rows: int, request: pytest.FixtureRequest) -> None:
    """As vpdpbf16ps has it, on every instruction set that a target may have; the bias and the residual are added as elsewhere."""
    if "x86-64-v2" in (request.config.getoption("--kernel-flags") or ""):
        pytest.skip("without fused multiply-adds so small a product is lost before it is added")
    x, weight, _ = inputs(rows, 40, 96)
    powers = torch.arange(96) % 12
    tiny = 2.0**-126
    x, weight = x * tiny**0.5 * 2.0**-powers, (weight * tiny**0.5 * 2.0 ** (powers.flip(0) - 6)).bfloat16()
    x[:, ::7] = tiny / 2
    weight[:, 1::5] = tiny / 4
    w = pack_dense(weight)
    out = linear("bf16", x, w, None, 40)
    assert torch.equal(out, expected("bf16", x, w, None, 40))
    assert out.any()
    assert not ((out != 0) & (out.abs() < tiny)).any()
    small = torch.full((40,), tiny / 8)
    assert torch.equal(linear("bf16", x, w, small, 40), out + small)
    assert torch.full((2,), tiny).div(4).any(), "the thread flushes what is not its own"


@pytest.mark.parametrize("features", [1, 31, 32, 33, 64, 576, 1000])
def test_rounded_activations_are_the_reference_bit_for_bit(features: int) -> None:
    x = torch.randn(40, features, generator=torch.Generator().manual_seed(features)) * torch.logspace(-42, 38, 40)[:, None]
    x[5, features // 3], x[7] = -torch.inf, 0
    x[9] = 1 + 2.0**-8 if features % 2 else 1 + 3 * 2.0**-8  # ties
    wide = torch.full((40, features + 9), torch.nan)
    wide[:, 4 : 4 + features] = x
    expected = activations.round_bf16(x).view(torch.int16)
    assert torch.equal(round_activations(x).view(torch.int16), expected)
    assert torch.equal(round_activations(wide[:, 4 : 4 + features]).view(torch.int16), expected)
    assert round_activations(x[:0]).shape == (0, features + features % 2)
    poisoned = torch.full((1, features), torch.nan)
    assert round_activations(poisoned)[:, :features].isnan().all()


@pytest.mark.parametrize("format", QUANTIZED)
def test_zeros_and_tiny_activations(format: str) -> None:
    _, weight, bias = inputs(1, 40, 64, format)
    w = packed_weight(format, weight)
    x = torch.zeros(4, weight.shape[1])
    x[1] = 1e-40
    x[2, 3] = 1e-20
    x[3] = 1e30
    out = linear(format, x, w, bias, 40)
    assert torch.equal(out[0], bias)
    assert torch.equal(out[1], bias)
    assert torch.equal(out, expected(format, x, w, bias, 40))


@pytest.mark.parametrize("storage", STORAGE)
def test_rows_may_be_slices_of_a_wider_tensor(storage: str) -> None:
    x, weight, _ = inputs(9, 40, 96, storage)
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    wide = torch.full((9, 400), torch.nan)
    wide[:, 50 : 50 + x.shape[1]] = x
    assert torch.equal(linear(kernel, wide[:, 50 : 50 + x.shape[1]], w, None, 40), linear(kernel, x, w, None, 40))


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("storage", STORAGE)
def test_a_residual_is_added_last(storage: str, rows: int) -> None:
    x, weight, bias = inputs(rows, 49, 96, storage)
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    wide = torch.randn(rows, 80)
    residual = wide[:, 3:52]
    out = linear(kernel, x, w, bias, 49, residual)
    assert torch.equal(out, linear(kernel, x, w, bias, 49) + residual)
    if kernel != "dense":
        assert torch.equal(out, expected(kernel, x, w, bias, 49, residual))
    with pytest.raises(RuntimeError, match="residual"):
        linear(kernel, x, w, None, 49, wide)


@pytest.mark.parametrize("features", [1, 31, 32, 33, 64, 576, 1000])
def test_quantized_activations_are_the_reference_bit_for_bit(features: int) -> None:
    x = torch.randn(40, features, generator=torch.Generator().manual_seed(features)) * torch.logspace(-42, 38, 40)[:, None]
    x[3, features // 2], x[5, features // 3], x[7] = torch.nan, -torch.inf, 0
    wide = torch.full((40, features + 9), torch.nan)
    wide[:, 4 : 4 + features] = x
    assert torch.equal(quantize_activations(x), activations.quantize(x))
    assert torch.equal(quantize_activations(wide[:, 4 : 4 + features]), activations.quantize(x))
    assert quantize_activations(x[:0]).shape == (0, -(-features // 32), 48)


@pytest.mark.parametrize("features", [1, 31, 64, 65, 576, 1000])
def test_activations_with_one_scale_are_the_reference_bit_for_bit(features: int) -> None:
    x = torch.randn(40, features, generator=torch.Generator().manual_seed(features)) * torch.logspace(-44, 38, 40)[:, None]
    x[3, features // 2], x[5, features // 3], x[7], x[9, 0] = torch.nan, -torch.inf, 0, -127.5
    wide = torch.full((40, features + 9), torch.nan)
    wide[:, 4 : 4 + features] = x
    assert torch.equal(quantize_rows(x), activations.quantize_rows(x))
    assert torch.equal(quantize_rows(wide[:, 4 : 4 + features]), activations.quantize_rows(x))
    quants, scales = activations.unpack_rows(quantize_rows(x))
    assert quants[9, 0] == -128
    assert scales[7] == 2.0**-23
    assert scales[[3, 5]].isnan().all()
    assert quantize_rows(x[:0]).shape == (0, row_activation_bytes(features))


def test_activations_with_one_scale_are_those_of_compressed_tensors() -> None:
    x = torch.randn(40, 320, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 40)[:, None]
    x[7] = 0
    arguments = QuantizationArgs(**TOKEN_ACTIVATIONS)
    (scales,), (zeros,) = compute_dynamic_scales_and_zp(x[None], arguments, torch.nn.Identity())
    quants, ours = activations.unpack_rows(activations.quantize_rows(x))
    assert torch.equal(ours, scales)
    assert torch.equal(quants[:, :320], compressed_tensors.quantize(x, scales, zeros, arguments, dtype=torch.int8))


@pytest.mark.parametrize("storage", STORAGE)
def test_no_rows(storage: str) -> None:
    x, weight, bias = inputs(1, 40, 96, storage)
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    assert linear(kernel, x[:0], w, bias, 40).shape == (0, 40)
    assert embedding(kernel, torch.empty(0, dtype=torch.int32), w, x.shape[1]).shape == (0, x.shape[1])


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize(("vocabulary", "dim"), [(50, 96), (17, 40), (1, 31)])
def test_embedding_is_exact(storage: str, vocabulary: int, dim: int) -> None:
    _, weight, _ = inputs(1, vocabulary, dim, storage)
    dim = weight.shape[1]
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    tokens = torch.randint(0, vocabulary, (1500,), dtype=torch.int32)
    out = embedding(kernel, tokens, w, dim)
    assert torch.equal(out, reference.embedding(kernel, tokens, w, dim, 1.0))
    assert torch.equal(out, unpack(kernel, w, vocabulary, dim)[tokens.long()])
    assert torch.equal(embedding(kernel, tokens, w, dim, 0.3), out * 0.3)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("rows", [1, 9, 70])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_sum_is_multiplied_before_the_residual_is_added(storage: str, rows: int, with_bias: bool) -> None:
    x, weight, bias = inputs(rows, 49, 96, storage)
    w, kernel, added = packed_weight(storage, weight), kernel_of(storage), bias if with_bias else None
    residual = torch.randn(rows, 49)
    out = linear(kernel, x, w, added, 49)
    assert torch.equal(linear(kernel, x, w, added, 49, multiplier=0.3), out * 0.3)
    assert torch.equal(linear(kernel, x, w, added, 49, residual, 0.3), out * 0.3 + residual)


@pytest.mark.parametrize("storage", STORAGE)
def test_wrong_calls_are_errors(storage: str) -> None:
    x, weight, bias = inputs(3, 40, 96, storage)
    w, kernel = packed_weight(storage, weight), kernel_of(storage)
    with pytest.raises(RuntimeError, match="wrong dtype"):
        linear(kernel, x.double(), w, None, 40)
    with pytest.raises(RuntimeError, match="dimensions"):
        linear(kernel, x[0], w, None, 40)
    with pytest.raises(RuntimeError, match=r"not packed for (64|2 groups)"):
        linear(kernel, x[:, :64], w, None, 40)
    with pytest.raises(RuntimeError, match="contiguous within a row"):
        linear(kernel, torch.randn(96, 3).T, w, None, 40)
    with pytest.raises(RuntimeError, match="panels"):
        linear(kernel, x, w, None, 49)
    with pytest.raises(RuntimeError, match="bias"):
        linear(kernel, x, w, bias[:39], 40)
    with pytest.raises(RuntimeError, match=r"wrong dtype|dense weights"):
        linear(kernel, x, w.to(torch.int16), None, 40)
    if kernel == "bf16":
        with pytest.raises(RuntimeError, match="round_bf16"):
            torch.ops.engine.linear_bf16(activations_for(kernel, x)[:, :95], w, None, None, 40, 1.0)
    for token in (-1, 48):
        with pytest.raises(RuntimeError, match="outside the vocabulary"):
            embedding(kernel, torch.tensor([0, token], dtype=torch.int32), w, x.shape[1])
    with pytest.raises(RuntimeError, match=r"not packed for (64|2 groups)"):
        embedding(kernel, torch.tensor([0], dtype=torch.int32), w, 64)


def test_the_library_is_loaded_once(kernel_library: Path, tmp_path: Path) -> None:
    from engine.errors import ArtifactError
    from engine.kernels import ops

    same = tmp_path / "same.so"
    same.write_bytes(kernel_library.read_bytes())
    ops.load(same)
    other = tmp_path / "other.so"
    other.write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="already runs the kernels"):
        ops.load(other)
