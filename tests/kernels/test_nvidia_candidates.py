"""Every way to cut an operator's work computes the same, and what is to be taken for which size is checked."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor
from triton_launches import (
    H200,
    Allocator,
    Call,
    Given,
    compile_launch,
    contiguous_strides,
    emit,
    holds,
    interpreter,
    problems_of,
    worst_error,
)
from weight_blocks import weight_like_blocks

from engine.kernels.nvidia import linear, linear_fp8, linear_quantized, reference
from engine.kernels.nvidia.choices import Candidate, Problem, Range, UnfitChoice, check
from engine.kernels.nvidia.context import Context
from engine.kernels.nvidia.formats import pack_rows
from engine.kernels.nvidia.fp8 import pack_fp8, quantize_fp8
from engine.kernels.nvidia.launch import Condition
from engine.kernels.nvidia.launch import Tensor as Place
from engine.kernels.nvidia.linear_cuts import Family, linear_problem
from engine.kernels.nvidia.linear_launches import Linear
from engine.kernels.nvidia.packed_rows import FP8_LAYOUTS, ROW_FORMATS, fp8_row_bytes, packed_shape

FEATURES, INPUTS = 136, 1152
"""No multiple of a tile, and enough of K to be cut."""
TINY = replace(H200, multiprocessors=12)
CASES = [
    *((format, count) for format in ("dense", "fp8_channel", "fp8_block") for count in (5, 40, 70)),
    *((format, count) for format, count in (("q4_1", 9), ("q8_0", 5), ("q6_k", 9), ("w4_g128", 5))),
]
"""Rows: few, one small tile, more. Of weights in groups, which are slow to interpret, few rows alone: they have every candidate but one."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def packed(format: str) -> Tensor:
    w = numbers(FEATURES, INPUTS, seed=1)
    if format == "dense":
        return w
    if format in FP8_LAYOUTS:
        groups = 1 if format == "fp8_channel" else INPUTS // 128
        return pack_fp8(format, w.to(torch.float8_e4m3fn), torch.full((FEATURES, groups), 0.5))
    return pack_rows(format, weight_like_blocks(format, FEATURES, INPUTS, seed=1))


def call(format: str, count: int) -> Call:
    x = numbers(count, INPUTS)
    rows = quantize_fp8(format, x) if format in FP8_LAYOUTS else x
    arguments = (Given(rows, ("T", rows.shape[1])), Given(packed(format)), None, None, FEATURES, 1.0)
    dims = {"T": count}
    return Call(operator=f"linear_rows_{format}", arguments=arguments, shape=("T", FEATURES), dtype="float32", dims=dims, device=TINY)


@pytest.mark.parametrize(("format", "count"), CASES)
def test_every_candidate_computes_the_same(format: str, count: int) -> None:
    """The policy's own results are compared with the reference in the tests of each kernel."""
    given = call(format, count)
    expected = interpreter().run(given)[0]
    (problem,) = problems_of(given)
    tried = 0
    for name, candidate in problem.candidates.items():
        if candidate.covers(count, count):
            chosen = replace(given, use=name)
            assert [launch for launch in emit(chosen)[0] if holds(launch, given.dims)]
            actual = interpreter().run(chosen)[0]
            rounded = format in ROW_FORMATS and "few" not in name  # tiles round weights to bfloat16
            assert worst_error(actual, expected.double()) <= (4e-3 if rounded else 1e-4) * float(expected.abs().max()), name
            tried += 1
    assert tried >= 3


@pytest.mark.parametrize("count", [17, 150])
def test_persistent_programs_walk_all_tiles(count: int) -> None:
    """More tiles than programs; the copy engine reads past the ends of x and w, and must find zeros there."""
    x, w = numbers(count, 200), numbers(300, 200, seed=1)
    residual = numbers(count, 300, seed=2)
    arguments = (Given(x, ("T", 200)), Given(w), None, Given(residual, ("T", 300)), 300, 0.3)
    few = replace(H200, multiprocessors=2)
    given = Call(operator="linear_rows_dense", arguments=arguments, shape=("T", 300), dtype="float32", dims={"T": count}, device=few)
    exact = reference.linear(x.double(), w, None, residual, 0.3)
    for tile in linear.FAMILY.persistent_tiles:
        chosen = replace(given, use=f"persistent {tile}")
        assert {launch.function.__name__ for launch in emit(chosen)[0] if holds(launch, given.dims)} == {"persistent_kernel"}
        assert torch.allclose(interpreter().run(chosen)[0].double(), exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


def test_rows_that_the_copy_engine_cannot_read_have_no_persistent_candidates() -> None:
    x, w = numbers(3, 100), numbers(64, 100, seed=1)  # rows begin at multiples of 8 bytes
    arguments = (Given(x, ("T", 100)), Given(w), None, None, 64, 1.0)
    (problem,) = problems_of(Call(operator="linear_rows_dense", arguments=arguments, shape=("T", 64), dtype="float32", dims={"T": 3}))
    assert not [name for name in problem.candidates if "persistent" in name]


def families() -> Iterator[tuple[str, Family]]:
    yield "dense", linear.FAMILY
    for format in FP8_LAYOUTS:
        yield format, linear_fp8.family(format)
    for format in ("q4_1", "q8_0", "q5_k", "q6_k", "w4_g128"):  # of each size of unit, with minima, zero points and two scales
        yield format, linear_quantized.family(format, 2048)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "family"), list(families()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_candidate_compiles_without_spilling(format: str, family: Family) -> None:
    rows = sympy.Symbol("T", integer=True, positive=True)

    def place(*shape: Any, dtype: str) -> Place:
        return Place(buffer="memory", dtype=dtype, shape=shape, strides=contiguous_strides(shape))

    x = place(rows, fp8_row_bytes(format, 2048), dtype="uint8") if format in FP8_LAYOUTS else place(rows, 2048, dtype="bfloat16")
    w = place(*packed_shape(format, 4096, 2048), dtype="bfloat16" if format == "dense" else "uint8")
    operands = Linear(x=x, w=w, bias=None, residual=None, multiplier=1.0, out=place(rows, 4096, dtype="bfloat16"), in_features=2048)
    context = Context(device=H200, allocate=Allocator())
    for name, candidate in linear_problem(family, operands, context).candidates.items():
        launch = candidate.launches(Condition(value=rows))[0]
        compiled = compile_launch(launch)
        assert compiled.stack_bytes == 0, name
        assert compiled.shared_bytes <= H200.shared_bytes, name
        if "few" not in name:
            assert "wgmma.mma_async" in compiled.ptx, name
        if "persistent" in name:
            assert "cp.async.bulk.tensor" in compiled.ptx, "no copy engine"


def problem(**candidates: Candidate) -> Problem:
    size = sympy.Symbol("T", integer=True, positive=True)
    out = Place(buffer="out", dtype="float32", shape=(size,), strides=(1,))
    policy = (Range(None, next(iter(candidates))),)
    return Problem(name="work", kind="rows", size=size, candidates=candidates, policy=policy, operands=(), out=out, dimensions={})


ANY, FEW, MANY = (Candidate(launches=lambda when: [], least=least, most=most) for least, most in ((1, None), (1, 16), (17, None)))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([Range(None, "none")], "no candidate 'none'"),
        ([], "no ranges"),
        ([Range(8, "any")], "without end"),
        ([Range(8, "any"), Range(8, "few"), Range(None, "any")], "follow each other"),
        ([Range(None, "any"), Range(None, "any")], "follow each other"),
        ([Range(17, "few"), Range(None, "any")], "for sizes 1 to 16, not 1 to 17"),
        ([Range(None, "few")], "for sizes 1 to 16"),
        ([Range(8, "few"), Range(None, "many")], "for sizes 17 to None, not 9 to None"),
    ],
)
def test_choices_that_do_not_fit(ranges: list[Range], message: str) -> None:
    with pytest.raises(UnfitChoice, match=message):
        check(problem(any=ANY, few=FEW, many=MANY), ranges)


def test_choices_that_fit() -> None:
    check(problem(any=ANY, few=FEW, many=MANY), [Range(4, "any"), Range(16, "few"), Range(100, "many"), Range(None, "any")])
