"""Packed weight layouts: nothing is lost from a GGUF block, and our own blocks are good ones."""

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import GGUF_TYPES, OURS, block_shape, published_values, random_blocks

from engine.kernels.linear.bands import Band, is_mixed, read_bands, write_bands
from engine.kernels.linear.blocks import FORMATS, GROUPED
from engine.kernels.linear.formats import pack_blocks, pack_dense, quantize, unpack, unpack_blocks
from engine.kernels.linear.packed import in_features_of_panels, packed_shape
from engine.kernels.linear.stored_blocks import BLOCK_BYTES, in_groups, read_blocks

FORMAT_NAMES = sorted(FORMATS)


def test_blocks_are_those_of_gguf() -> None:
    for name, type in GGUF_TYPES.items():
        assert gguf.GGML_QUANT_SIZES[type] == (FORMATS[name].block, BLOCK_BYTES[name])
    zero_points = {f"w{bits}_g{block}" for bits in (4, 8) for block in (32, 64, 128)}
    assert {name for name in FORMATS if name not in GGUF_TYPES} == zero_points | {"nvfp4_mul", "nvfp4_div", "w8a8", *OURS}


@settings(max_examples=40, deadline=None)
@given(format=st.sampled_from(FORMAT_NAMES), rows=st.integers(1, 50), blocks=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_blocks_are_carried_over_exactly(format: str, rows: int, blocks: int, seed: int) -> None:
    spec = FORMATS[format]
    raw = random_blocks(format, rows, blocks * spec.block, seed)
    packed = pack_blocks(format, raw)
    assert packed.shape == packed_shape(format, rows, blocks * spec.block)
    assert packed.shape[1:] == (
        (1, 16 * (spec.head_bytes + blocks * spec.group_bytes)) if spec.of_rows else (blocks, 16 * spec.packed_bytes)
    )
    assert packed.is_contiguous()
    assert torch.equal(unpack(format, packed, rows, blocks * spec.block), published_values(format, raw))


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_every_bit_of_a_block_is_kept(format: str) -> None:
    """What is packed, taken apart again, is the file's blocks taken apart; and every bit of those is in one of the parts."""
    raw = random_blocks(format, 20, 2 * FORMATS[format].block, seed=1)
    packed, whole = unpack_blocks(format, pack_blocks(format, raw), 20), read_blocks(format, raw)
    for name, part in vars(whole).items():
        assert torch.equal(getattr(packed, name), part) if part is not None else getattr(packed, name) is None
    spec = FORMATS[format]
    _, size = block_shape(format, 2 * spec.block)
    for bit in range(8 * size):
        if format in OURS and bit >= 8 * (size - 64) and bit % 8 >= spec.bits:
            continue  # of a byte that holds a smaller code
        changed = raw.clone()
        changed[:, bit // 8] ^= 1 << bit % 8
        parts = vars(read_blocks(format, changed)).values()
        assert any(not torch.equal(a, b) for a, b in zip(vars(whole).values(), parts, strict=True) if a is not None), bit


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_the_layout_is_the_documented_one(format: str) -> None:
    spec = FORMATS[format]
    raw = random_blocks(format, 20, 3 * spec.block, seed=1)
    packed, blocks = pack_blocks(format, raw), read_blocks(format, raw)
    group_bytes = 16 * spec.group_bytes
    for n, b, g, k in ((0, 0, 0, 0), (5, 1, 1, 31), (15, 2, 7, 7), (17, 0, 3, 16), (19, 2, 6, 30), (3, 1, 5, 22)):
        b, g = (0, b) if spec.of_rows else (b, g % spec.groups)
        panel, lane = packed[n // 16, b], n % 16
        size, head = spec.number_bytes, 0 if spec.head_first else group_bytes
        group = panel[(16 * spec.head_bytes if spec.head_first else 0) + g * group_bytes :][:group_bytes]
        code = int(blocks.codes[n, b, 32 * g + k])
        if spec.bits == 8:
            assert group[k // 4 * 64 + lane * 4 + k % 4] == code
        else:
            stored, quad, at = 0, k // 4, lane * 4 + k % 4
            planes = iter(group[: 16 * spec.code_bytes].view(-1, 64).tolist())
            if spec.bits >= 4:
                nibbles = [next(planes) for _ in range(4)]
                stored = nibbles[quad % 4][at] >> (4 if quad >= 4 else 0) & 15
            if spec.bits in (2, 3, 6):
                pairs = [next(planes) for _ in range(2)]
                stored |= (pairs[quad // 4][at] >> 2 * (quad % 4) & 3) << (4 if spec.bits == 6 else 0)
            if spec.bits in (3, 5):
                stored |= (next(planes)[at] >> quad & 1) << spec.bits - 1
            assert stored == code
        for i in range(spec.numbers):
            at = head + 16 * size * i + size * lane
            assert torch.equal(panel[at : at + size], blocks.head[n, b, size * i : size * (i + 1)])
        if spec.has_zero_point:
            assert panel[head + 16 * size * spec.numbers + lane] == blocks.head[n, b, -1]
        if blocks.scales is not None:
            per_group, half = spec.subscales, k * spec.subscales // 32
            integers = group[16 * spec.code_bytes :].view(-1, 16)
            assert integers.view(blocks.scales.dtype)[half, lane] == blocks.scales[n, b, g * per_group + half]
            if blocks.minima is not None:
                assert integers[per_group + half, lane] == blocks.minima[n, b, g * per_group + half]


@pytest.mark.parametrize("format", GROUPED)
def test_rows_of_one_scale_mean_the_same_in_groups(format: str) -> None:
    raw = random_blocks("w8a8", 5, 256, seed=1)
    assert torch.equal(published_values(format, in_groups(format, raw)), published_values("w8a8", raw))


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", *FORMAT_NAMES])
def test_the_shape_tells_how_many_inputs_there_are(format: str) -> None:
    for blocks in (1, 3):
        in_features = blocks * (FORMATS[format].block if format in FORMATS else 2)
        assert in_features_of_panels(format, packed_shape(format, 20, in_features)) == in_features


def test_bands_are_written_read_and_measured() -> None:
    for bands in ([Band("q5_0", 896), Band("q8_0", 7)], [Band("i4_g32", 20), Band("i5_g32", 48), Band("q8_0", 1)], [Band("q8_0", 9)] * 2):
        text = write_bands(bands)
        assert read_bands(text) == bands
        assert is_mixed(text)
        for in_features in (32, 96, 1024):
            (size,) = packed_shape(text, sum(band.out_features for band in bands), in_features)
            assert size == sum(pack_blocks(b.format, random_blocks(b.format, b.out_features, in_features, seed=1)).numel() for b in bands)
            assert in_features_of_panels(text, (size,)) == in_features
    assert write_bands([Band("q5_0", 896), Band("q8_0", 128)]) == "q5_0:896+q8_0:128"
    assert not any(is_mixed(format) for format in FORMATS)


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_padding_rows_are_zero(format: str) -> None:
    in_features = 2 * FORMATS[format].block
    packed = pack_blocks(format, random_blocks(format, 3, in_features, seed=2))
    assert not unpack(format, packed, 16, in_features)[3:].any()


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_incomplete_blocks_are_refused(format: str) -> None:
    with pytest.raises(ValueError, match="whole groups" if FORMATS[format].of_rows else f"whole {format} blocks"):
        pack_blocks(format, torch.zeros(1, block_shape(format, 1)[1] + 1, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (17, 40), (32, 7)])
def test_dense_round_trip(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, dtype=dtype)
    packed = pack_dense(weight)
    pairs = dtype == torch.bfloat16
    assert packed.shape == ((-(-shape[0] // 16), -(-shape[1] // 2), 16, 2) if pairs else (-(-shape[0] // 16), shape[1], 16))
    assert packed.dtype == dtype
    assert torch.equal(unpack("bf16" if pairs else "dense", packed, *shape), weight.float())


def test_bfloat16_lies_in_pairs_along_k() -> None:
    packed = pack_dense(torch.arange(40 * 7).view(40, 7).bfloat16())
    for n, k in ((0, 0), (17, 3), (39, 6)):
        assert packed[n // 16, k // 2, n % 16, k % 2] == torch.tensor(n * 7 + k).bfloat16()
    assert not packed[:, 3, :, 1].any()
    assert not packed[2, :, 8:].any()


@pytest.mark.parametrize("in_features", [32, 40, 576])
def test_quantization_is_as_good_as_ggufs(in_features: int) -> None:
    """Blocks are valid GGUF, and their squared error is no more than 2 % above the gguf package's own rounding."""
    weight = torch.randn(48, in_features, generator=torch.Generator().manual_seed(3)) * 0.05
    raw = quantize("q8_0", weight)
    padded = torch.nn.functional.pad(weight, (0, -in_features % 32))
    theirs = published_values("q8_0", torch.from_numpy(gguf.quants.quantize(padded.numpy(), GGUF_TYPES["q8_0"])))
    ours = published_values("q8_0", raw)
    assert torch.equal(unpack("q8_0", pack_blocks("q8_0", raw), 48, in_features), ours[:, :in_features])
    assert (ours - padded).square().sum() <= 1.02 * (theirs - padded).square().sum()


def test_quantization_of_constants_is_exact_for_what_float16_holds() -> None:
    weight = torch.stack([torch.full((64,), value) for value in (0.0, -0.0, 0.5, -2.0, 1e-9)])
    values = unpack("q8_0", pack_blocks("q8_0", quantize("q8_0", weight)), 5, 64)
    assert (values - weight).abs().max() <= 2.0 * 2.0**-11


@pytest.mark.parametrize(("format", "values"), [("q8_0", (torch.nan, torch.inf, 1e30)), ("i4_g32", (torch.nan, torch.inf))])
def test_values_beyond_the_format_are_refused(format: str, values: tuple[float, ...]) -> None:
    for value in values:
        weight = torch.zeros(2, 32)
        weight[1, 5] = value
        with pytest.raises(ValueError, match="cannot hold"):
            quantize(format, weight)
