"""Packed weight layouts: nothing is lost from a GGUF block, and our own blocks are good ones."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels.linear.blocks import FORMATS
from engine.kernels.linear.formats import pack_blocks, pack_dense, quantize, unpack, unpack_groups

GGUF_TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
}
FORMAT_NAMES = sorted(FORMATS)


def gguf_values(format: str, raw: Tensor) -> Tensor:
    values: np.ndarray = dequantize(raw.numpy(), GGUF_TYPES[format])
    return torch.from_numpy(values)


def random_blocks(format: str, rows: int, groups: int, seed: int) -> Tensor:
    """Blocks of every possible quant, with finite scales and mins of either sign."""
    spec = FORMATS[format]
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randn(rows, groups, spec.scales, generator=generator).half()
    quants = torch.randint(0, 256, (rows, groups, spec.quant_bytes), dtype=torch.uint8, generator=generator)
    return torch.cat((scales.view(torch.uint8), quants), dim=2).flatten(1)


@settings(max_examples=40, deadline=None)
@given(format=st.sampled_from(FORMAT_NAMES), rows=st.integers(1, 50), groups=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_gguf_blocks_are_carried_over_exactly(format: str, rows: int, groups: int, seed: int) -> None:
    raw = random_blocks(format, rows, groups, seed)
    packed = pack_blocks(format, raw)
    assert packed.shape == (-(-rows // 16), groups, 16 * FORMATS[format].block_bytes)
    assert packed.is_contiguous()
    assert torch.equal(unpack(format, packed, rows, groups * 32), gguf_values(format, raw))


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_the_layout_is_the_documented_one(format: str) -> None:
    raw = random_blocks(format, 20, 3, seed=1)
    packed = pack_blocks(format, raw)
    spec = FORMATS[format]
    blocks = raw.view(20, 3, spec.block_bytes)
    for n, g, k in ((0, 0, 0), (5, 1, 31), (15, 2, 7), (17, 0, 16), (19, 2, 30)):
        panel = packed[n // 16, g]
        stored = blocks[n, g, 2 * spec.scales :]
        if spec.bits == 8:
            assert panel[k // 4 * 64 + n % 16 * 4 + k % 4] == stored[k]
        else:
            byte = int(panel[k % 16 // 4 * 64 + n % 16 * 4 + k % 4])
            assert (byte >> 4 if k >= 16 else byte & 15) == (int(stored[k % 16]) >> 4 if k >= 16 else int(stored[k % 16]) & 15)
        for i in range(spec.scales):
            at = 16 * spec.quant_bytes + 32 * i + 2 * (n % 16)
            assert torch.equal(panel[at : at + 2], blocks[n, g, 2 * i : 2 * i + 2])


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_padding_rows_are_zero(format: str) -> None:
    packed = pack_blocks(format, random_blocks(format, 3, 2, seed=2))
    groups = unpack_groups(format, packed, 16)
    assert not groups.scales[3:].any()
    assert not unpack(format, packed, 16, 64)[3:].any()


def test_incomplete_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="whole q8_0 blocks"):
        pack_blocks("q8_0", torch.zeros(1, 35, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (17, 40), (32, 7)])
def test_dense_round_trip(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, dtype=dtype)
    packed = pack_dense(weight)
    assert packed.shape == (-(-shape[0] // 16), shape[1], 16)
    assert packed.dtype == dtype
    assert torch.equal(unpack("dense", packed, *shape), weight.float())


@pytest.mark.parametrize("format", FORMAT_NAMES)
@pytest.mark.parametrize("in_features", [32, 40, 576])
def test_quantization_is_as_good_as_ggufs(format: str, in_features: int) -> None:
    """Blocks are valid GGUF, and their squared error is no more than 2 % above the gguf package's own rounding."""
    weight = torch.randn(48, in_features, generator=torch.Generator().manual_seed(3)) * 0.05
    raw = quantize(format, weight)
    padded = torch.nn.functional.pad(weight, (0, -in_features % 32))
    theirs = gguf_values(format, torch.from_numpy(gguf.quants.quantize(padded.numpy(), GGUF_TYPES[format])))
    ours = gguf_values(format, raw)
    assert torch.equal(unpack(format, pack_blocks(format, raw), 48, in_features), ours[:, :in_features])
    assert (ours - padded).square().sum() <= 1.02 * (theirs - padded).square().sum()


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_quantization_of_constants_is_exact_for_what_float16_holds(format: str) -> None:
    weight = torch.stack([torch.full((64,), value) for value in (0.0, -0.0, 0.5, -2.0, 1e-9)])
    values = unpack(format, pack_blocks(format, quantize(format, weight)), 5, 64)
    assert (values - weight).abs().max() <= 2.0 * 2.0**-11


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_values_beyond_the_format_are_refused(format: str) -> None:
    for value in (torch.nan, torch.inf, 1e30):
        weight = torch.zeros(2, 32)
        weight[1, 5] = value
        with pytest.raises(ValueError, match="cannot hold"):
            quantize(format, weight)
