"""Weight-only quantized linears and embeddings for NVIDIA: the packed bytes, and the kernels interpreted."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, interpreter, worst_error

from engine.kernels.formats import ROW_FORMATS
from engine.kernels.linear import formats as panels
from engine.kernels.nvidia import reference
from engine.kernels.nvidia.formats import pack_rows, packed_shape, unpack_rows

TOKENS = [1, 16, 17, 70]
SHAPES = [(70, 1120, 132), (40, 96, 1)]
"""N, K, multiprocessors: the first with K split among programs, the second with more of N per program."""
ORDER = 4
"""Sums of the same float32 products in another order may be this much worse than torch's."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks(format: str, features: int, inputs: int) -> Tensor:
    return panels.quantize(format, numbers(features, inputs, seed=1))


@pytest.mark.parametrize("inputs", [32, 100, 256, 576])
@pytest.mark.parametrize("format", ROW_FORMATS)
def test_packing_keeps_every_block(format: str, inputs: int) -> None:
    raw = blocks(format, 33, inputs)
    packed = pack_rows(format, raw)
    assert packed.shape == packed_shape(format, 33, inputs)
    assert packed.shape[1] % 16 == 0
    expected = panels.unpack(format, panels.pack_blocks(format, raw), 33, inputs)
    assert torch.equal(unpack_rows(format, packed, inputs), expected)


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


@pytest.mark.parametrize(("features", "inputs", "multiprocessors"), SHAPES)
@pytest.mark.parametrize("format", ROW_FORMATS)
@pytest.mark.parametrize("count", TOKENS)
def test_values(count: int, format: str, features: int, inputs: int, multiprocessors: int) -> None:
    """The weights are rounded to bfloat16, nothing else is; the result is float32."""
    x, w = numbers(count, inputs + 16).bfloat16()[:, 8 : 8 + inputs], pack_rows(format, blocks(format, features, inputs))
    bias, residual = numbers(features, seed=2), numbers(count, 2 * features, seed=3).bfloat16()[:, features:]
    call = replace(linear(format, x, w, bias, residual, multiplier=0.3), device=replace(H200, multiprocessors=multiprocessors))
    actual = interpreter().run(call)[0]
    as_used = unpack_rows(format, w, inputs).bfloat16()
    exact = reference.linear(x.double(), as_used, bias, residual, 0.3)
    assert worst_error(actual, exact) <= ORDER * worst_error(reference.linear(x.float(), as_used, bias, residual, 0.3), exact)


@pytest.mark.parametrize("format", ROW_FORMATS)
def test_large_tiles(format: str) -> None:
    x, w = numbers(150, 160).bfloat16(), pack_rows(format, blocks(format, 150, 160))
    one = replace(linear(format, x, w, None, None), device=replace(H200, multiprocessors=1))
    as_used = unpack_rows(format, w, 160).bfloat16()
    exact = reference.linear(x.double(), as_used, None, None)
    assert worst_error(interpreter().run(one)[0], exact) <= ORDER * worst_error(reference.linear(x.float(), as_used, None, None), exact)


@pytest.mark.parametrize("format", ROW_FORMATS)
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
    w = pack_rows(format, blocks(format, 50, 1120))
    tokens = torch.tensor([3, 49, 0, -1, 50], dtype=torch.int32)
    call = Call(
        operator=f"embedding_rows_{format}",
        arguments=(Given(tokens, ("T",)), Given(w), 1120, 1.0),
        shape=("T", 1120),
        dtype="float32",
        dims={"T": 5},
    )
    exact = unpack_rows(format, w, 1120)[[3, 49, 0, 0, 49]]
    assert torch.equal(interpreter().run(call)[0], exact)
    assert torch.equal(interpreter().run(replace(call, dtype="bfloat16"))[0], exact.bfloat16())
    scaled = replace(call, arguments=(*call.arguments[:-1], 0.3))
    assert torch.equal(interpreter().run(scaled)[0], exact * 0.3)
