"""Weight-only quantized linears and embeddings for NVIDIA: the packed bytes, and the kernels interpreted."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, interpreter, worst_error
from weight_blocks import published_values, random_blocks, weight_like_blocks

from engine.kernels.formats import ROW_FORMATS
from engine.kernels.linear.blocks import FORMATS
from engine.kernels.linear.stored_blocks import read_blocks
from engine.kernels.nvidia import reference
from engine.kernels.nvidia.formats import pack_rows, packed_shape, unpack_row_blocks, unpack_rows
from engine.kernels.nvidia.packed_rows import part_bytes

FEW = 16
CASES = [(1, 34, 1120, 132), (16, 40, 96, 1), (17, 34, 1120, 132), (70, 40, 96, 1)]
"""Tokens, N, K, multiprocessors: with many of those, K is split among programs; with one, a program has more of N."""
KINDS = ("q8_0", "q4_1", "q5_0", "q6_k", "w4_g64", "iq4_xs", "nvfp4_div", "i5_g32")
"""Of each size of unit, with minima, zero points, a table and two levels, of which scales are integers or e4m3 or those of a row."""
ORDER = 4
"""Sums of the same float32 products in another order may be this much worse than torch's."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks(format: str, features: int, inputs: int) -> Tensor:
    return weight_like_blocks(format, features, inputs, seed=1)


@pytest.mark.parametrize("inputs", [32, 96, 256, 576, 1024])
@pytest.mark.parametrize("format", ROW_FORMATS)
def test_packing_keeps_every_bit(format: str, inputs: int) -> None:
    """Rows that end within a unit or a block, too: what is kept of those is the whole block."""
    raw = random_blocks(format, 33, inputs, seed=inputs)
    packed = pack_rows(format, raw)
    assert packed.shape == packed_shape(format, 33, inputs)
    assert packed.shape[1] % 16 == 0
    assert packed.shape[1] == sum(part_bytes(format, inputs).values())
    kept, given = unpack_row_blocks(format, packed, inputs), read_blocks(format, raw)
    assert torch.equal(kept.codes, given.codes)
    assert torch.equal(kept.head, given.head)
    for mine, theirs in ((kept.scales, given.scales), (kept.minima, given.minima)):
        assert (mine is None) == (theirs is None)
        assert mine is None or theirs is None or torch.equal(mine, theirs)
    assert torch.equal(unpack_rows(format, packed, inputs), published_values(format, raw)[:, :inputs])


def test_bits_per_weight_are_those_of_the_registry() -> None:
    """Of rows long enough for padding not to count, and but for the head of those that are blocks."""
    for format, spec in ((format, FORMATS[format]) for format in ROW_FORMATS):
        assert (packed_shape(format, 1, 4096)[1] - 16 * spec.of_rows) * 8 / 4096 == spec.bits_per_weight, format


def test_packing_refuses_parts_of_blocks() -> None:
    with pytest.raises(ValueError, match="whole q4_0 blocks"):
        pack_rows("q4_0", torch.zeros(2, 17, dtype=torch.uint8))


def linear(
    format: str, x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, operator: str = "logits", multiplier: float = 1.0
) -> Call:
    features = w.shape[0]
    added = (bias if bias is None else Given(bias), residual if residual is None else Given(residual, ("T", features)))
    return Call(
        operator=f"{operator}_rows_{format}",
        arguments=(Given(x, ("T", x.shape[1])), Given(w), *added, features, multiplier),
        shape=("T", features),
        dtype="float32" if operator == "logits" else "bfloat16",
        dims={"T": len(x)},
    )


@pytest.mark.parametrize("format", ROW_FORMATS)
@pytest.mark.parametrize(("count", "features", "inputs", "multiprocessors"), CASES)
def test_values(count: int, format: str, features: int, inputs: int, multiprocessors: int) -> None:
    """Of more than a few rows, weights are rounded to bfloat16, and nothing else is; the result is float32."""
    x, w = numbers(count, inputs + 16).bfloat16()[:, 8 : 8 + inputs], pack_rows(format, blocks(format, features, inputs))
    bias, residual = numbers(features, seed=2), numbers(count, 2 * features, seed=3).bfloat16()[:, features:]
    call = replace(linear(format, x, w, bias, residual, multiplier=0.3), device=replace(H200, multiprocessors=multiprocessors))
    actual = interpreter().run(call)[0]
    as_used = unpack_rows(format, w, inputs)
    as_used = as_used if count <= FEW else as_used.bfloat16().float()
    exact = reference.linear(x.double(), as_used, bias, residual, 0.3)
    assert worst_error(actual, exact) <= ORDER * worst_error(reference.linear(x.float(), as_used, bias, residual, 0.3), exact)


@pytest.mark.parametrize("format", KINDS)
def test_large_tiles(format: str) -> None:
    x, w = numbers(150, 160).bfloat16(), pack_rows(format, blocks(format, 150, 160))
    one = replace(linear(format, x, w, None, None), device=replace(H200, multiprocessors=1))
    as_used = unpack_rows(format, w, 160).bfloat16()
    exact = reference.linear(x.double(), as_used, None, None)
    assert worst_error(interpreter().run(one)[0], exact) <= ORDER * worst_error(reference.linear(x.float(), as_used, None, None), exact)


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("count", [7, 40])
def test_rows_are_alone_and_results_repeat(count: int, format: str) -> None:
    x, w = numbers(count, 608).bfloat16(), pack_rows(format, blocks(format, 40, 608))
    whole = interpreter().run(linear(format, x, w, None, None))[0]
    assert torch.equal(interpreter().run(linear(format, x, w, None, None))[0], whole)
    lonely = torch.full_like(x, torch.nan)
    lonely[5] = x[5]
    assert torch.equal(interpreter().run(linear(format, lonely, w, None, None))[0][5], whole[5])
    assert torch.equal(interpreter().run(linear(format, x, w, None, None, "linear"))[0], whole.bfloat16())


@pytest.mark.parametrize("format", ROW_FORMATS)
def test_embedding_is_exact(format: str) -> None:
    w = pack_rows(format, blocks(format, 20, 608))
    tokens = torch.tensor([3, -1, 20], dtype=torch.int32)
    call = Call(
        operator=f"embedding_rows_{format}",
        arguments=(Given(tokens, ("T",)), Given(w), 608, 1.0),
        shape=("T", 608),
        dtype="float32",
        dims={"T": 3},
    )
    exact = unpack_rows(format, w, 608)[[3, 0, 19]]
    assert torch.equal(interpreter().run(call)[0], exact)
    scaled = replace(call, arguments=(*call.arguments[:-1], 0.3), dtype="bfloat16")
    assert torch.equal(interpreter().run(scaled)[0], (exact * 0.3).bfloat16())
