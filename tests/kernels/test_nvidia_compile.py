"""Every kernel that a Llama of 1B needs compiles for sm_90 without a GPU, keeps its numbers in registers and fits."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import sympy
from tiers import tiered
from triton_launches import H200, Allocator, compile_launch, contiguous_strides, variant

from engine.kernels.attention.options import AttentionOptions
from engine.kernels.formats import ROW_FORMATS
from engine.kernels.moe.options import RouteOptions
from engine.kernels.nvidia.choices import Problem, Range
from engine.kernels.nvidia.context import Context
from engine.kernels.nvidia.emitters import emitter_of
from engine.kernels.nvidia.launch import Condition, Launch, Size, Tensor
from engine.kernels.nvidia.packed_rows import FP8_FORMATS, FP8_LAYOUTS, FP8_STATIC, fp8_row_bytes, packed_shape
from engine.kernels.row_operators import FUNCTIONS

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEATURES, VOCABULARY = 2048, 32, 8, 64, 8192, 128_256
EXPERTS, CHOSEN, EXPERT_FEATURES = 128, 8, 768
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
T, S, B = sympy.symbols("T S B", integer=True, positive=True)
Operation = tuple[str, tuple[Any, ...], Tensor]


def tensor(*shape: Size, dtype: str = "bfloat16", strides: tuple[Size, ...] | None = None, offset: int = 0) -> Tensor:
    return Tensor(buffer="memory", dtype=dtype, shape=shape, strides=strides or contiguous_strides(shape), offset=offset)


def linear(kernel: str, features: int, inputs: int, *, residual: bool = False, rows: Size = T, operator: str = "linear") -> Operation:
    added = tensor(rows, features) if residual else None
    w = tensor(*packed_shape(kernel, features, inputs), dtype="bfloat16" if kernel == "dense" else "uint8")
    x = fp8_rows(kernel, rows, inputs) if kernel in FP8_LAYOUTS else tensor(rows, inputs)
    out = tensor(rows, features, dtype="float32" if operator == "logits" else "bfloat16")
    return f"{operator}_rows_{kernel}", (x, w, None, added, features, 1.0), out


def fp8_rows(kernel: str, rows: Size, inputs: int) -> Tensor:
    return tensor(rows, fp8_row_bytes(kernel, inputs), dtype="uint8")


def attention(head_dim: int = HEAD_DIM, *, window: int = 0, softcap: float = 0.0, with_sinks: bool = False) -> Operation:
    """Of layers that rotate."""
    row = (HEADS + 2 * KV_HEADS) * head_dim
    q, k, v = (
        tensor(T, heads, head_dim, strides=(row, head_dim, 1), offset=first * head_dim)
        for first, heads in ((0, HEADS), (HEADS, KV_HEADS), (HEADS + KV_HEADS, KV_HEADS))
    )
    angles = [tensor(T, head_dim // 2, dtype="float32")] * 2
    caches = [tensor(1000, KV_HEADS, 32, head_dim)] * 2
    lists = [
        tensor(S + 1, dtype="int32"),
        tensor(S, dtype="int32"),
        tensor(S, B, dtype="int32", strides=(512, 1)),
        tensor(T, dtype="int32"),
    ]
    sinks = tensor(HEADS, dtype="float32") if with_sinks else None
    options = AttentionOptions(scale=head_dim**-0.5, window=window, softcap=softcap)
    arguments = (q, k, v, *caches, *lists, None, None, *angles, sinks, None, *options.scalars())
    return "attention", arguments, tensor(T, HEADS, head_dim)


def latent_attention(heads: int, rank: int = 512, rope: int = 64) -> Operation:
    """As of DeepSeek's models, whose latents are of 512 elements."""
    lists = [
        tensor(S + 1, dtype="int32"),
        tensor(S, dtype="int32"),
        tensor(S, B, dtype="int32", strides=(512, 1)),
        tensor(T, dtype="int32"),
    ]
    kept = tensor(1000, 1, 32, rank + rope)
    arguments = (tensor(heads, T, rank), tensor(T, heads, rope), tensor(T, rank + rope), kept, *lists, 0.1)
    return "latent_attention", arguments, tensor(heads, T, rank)


def linears(kernel: str) -> Iterator[Operation]:
    yield linear(kernel, QKV, HIDDEN)
    yield linear(kernel, 2 * FEATURES, HIDDEN)
    yield linear(kernel, HIDDEN, FEATURES, residual=True)
    yield linear(kernel, VOCABULARY, HIDDEN, rows=S, operator="logits")


def between() -> Iterator[Operation]:
    """All but linears and FP8."""
    halves = [tensor(T, FEATURES, strides=(2 * FEATURES, 1), offset=offset) for offset in (0, FEATURES)]
    for kernel in ("dense", *ROW_FORMATS):
        w = tensor(*packed_shape(kernel, VOCABULARY, HIDDEN), dtype="bfloat16" if kernel == "dense" else "uint8")
        yield f"embedding_rows_{kernel}", (tensor(T, dtype="int32"), w, HIDDEN, 1.0), tensor(T, HIDDEN)
    rows, vector, scalar = tensor(T, HIDDEN), tensor(HIDDEN, dtype="float32"), tensor(1, dtype="float32")
    yield "rms_norm", (rows, vector, None, 1e-5), rows
    yield "layer_norm", (rows, vector, vector, rows, 1e-5), rows
    yield attention()
    for function in FUNCTIONS:
        yield f"{function}_mul", tuple(halves), tensor(T, FEATURES)
    yield "xielu", (rows, scalar, scalar, scalar, scalar), rows
    logits, numbers, tokens = tensor(S, VOCABULARY, dtype="float32"), tensor(S, dtype="float32"), tensor(S, dtype="int32")
    yield "soft_cap", (logits, 30.0), logits
    yield "sample", (logits, numbers, tokens, numbers, numbers, numbers), tokens


def mixture(kernel: str) -> Iterator[Operation]:
    """The products of 128 experts, of which each token chooses eight: gate and up of rows of tokens, then down of those of pairs."""
    for features, inputs, parts in ((EXPERT_FEATURES, HIDDEN, 2), (HIDDEN, EXPERT_FEATURES, 1)):
        w = tensor(*packed_shape(kernel, parts * EXPERTS * features, inputs), dtype="bfloat16" if kernel == "dense" else "uint8")
        rows = T if parts == 2 else CHOSEN * T
        x = fp8_rows(kernel, rows, inputs) if kernel in FP8_LAYOUTS else tensor(rows, inputs)
        order = tensor(EXPERTS + 1 + 2 * CHOSEN * T, dtype="int32")
        arguments = (x, w, None, order, parts * features, EXPERTS, parts, parts == 2)
        yield f"experts_rows_{kernel}", arguments, tensor(CHOSEN * T, parts * features)


def routing() -> Iterator[Operation]:
    """What stands around them, and the router."""
    logits, routes = tensor(T, EXPERTS, dtype="float32"), tensor(T, 2, CHOSEN, dtype="int32")
    order, rows = tensor(EXPERTS + 1 + 2 * CHOSEN * T, dtype="int32"), tensor(T, HIDDEN)
    in_groups = RouteOptions(chosen=CHOSEN, score="sigmoid", groups=8, kept=4, best=2, normalized=True, eps=1e-20, scale=2.5)
    yield "logits_rows_dense", (rows, tensor(EXPERTS, HIDDEN, dtype="float32"), None, None, EXPERTS, 1.0), logits
    yield "route", (logits, None, None, *RouteOptions(chosen=CHOSEN, score="softmax").arguments), routes
    yield "route", (logits, tensor(EXPERTS, dtype="float32"), None, *in_groups.arguments), routes
    yield "sort_routes", (routes, EXPERTS), order
    yield "equal_order", (tensor(EXPERTS * T, 512), EXPERTS), tensor(EXPERTS + 1 + 2 * EXPERTS * T, dtype="int32")
    yield "combine_experts", (tensor(CHOSEN * T, HIDDEN), routes, order, rows, tensor(T, 1), rows, 1.0, True), rows
    yield "weigh_rows", (rows, routes, order), tensor(CHOSEN * T, HIDDEN)


def quantizers() -> Iterator[Operation]:
    for format in FP8_FORMATS:
        norm = tensor(T, HIDDEN), tensor(HIDDEN, dtype="float32"), None, 1e-5
        scale = (tensor(1, dtype="float32"),) if format == FP8_STATIC else ()
        yield f"quantize_{format}", (tensor(T, HIDDEN), *scale), fp8_rows(format, T, HIDDEN)
        yield f"rms_norm_quantize_{format}", (*norm, *scale), fp8_rows(format, T, HIDDEN)
        yield f"silu_mul_quantize_{format}", (tensor(T, FEATURES), tensor(T, FEATURES), *scale), fp8_rows(format, T, FEATURES)


def launches_of(operations: Iterable[Operation]) -> list[Launch]:
    """One launch of every kernel that has to be compiled."""
    context = Context(device=H200, allocate=Allocator())
    launches = (launch for name, arguments, out in operations for launch in emitter_of(name)(arguments, out, context))
    return list({variant(launch): launch for launch in launches}.values())


def candidates_of(operation: Operation) -> list[Launch]:
    """One launch of every kernel that any candidate has."""
    name, arguments, out = operation
    problems: list[Problem] = []

    def note(problem: Problem) -> Sequence[Range]:
        problems.append(problem)
        return problem.policy

    emitter_of(name)(arguments, out, Context(device=H200, allocate=Allocator(), choose=note))
    candidates = (candidate for problem in problems for candidate in problem.candidates.values())
    launches = (launch for candidate in candidates for launch in candidate.launches(Condition(value=T)))
    return list({variant(launch): launch for launch in launches}.values())


COMMON = ("dense", "q8_0", "q4_k", "q6_k", "w4_g128", *FP8_LAYOUTS)
_LINEARS = ("", "_quantized", "_fp8")
TILED = {f"{experts}tile{kind}_kernel" for experts in ("", "experts_") for kind in _LINEARS} | {
    "attention_mixed_kernel",
    "latent_mixed_kernel",
}
STREAMING = {f"{experts}few_rows{kind}_kernel" for experts in ("", "experts_") for kind in _LINEARS} | {
    "attention_decode_kernel",
    "latent_decode_kernel",
}


def check(launches: list[Launch]) -> None:
    for launch in launches:
        compiled = compile_launch(launch)
        assert compiled.stack_bytes == 0, launch
        assert compiled.shared_bytes <= H200.shared_bytes, launch
        if compiled.name in TILED:
            assert "wgmma.mma_async" in compiled.ptx, launch
        if compiled.name in TILED | STREAMING:
            assert re.search(r"cp\.async\.cg.* 0x10,", compiled.ptx), "no loads of 16 bytes ahead of their use"


def test_kernels_compile_without_spilling() -> None:
    check(launches_of([*between(), *quantizers()]))


def test_routing_compiles_without_spilling() -> None:
    launches = launches_of(routing())
    of_the_router = [launch for launch in launches if launch.function.__name__ == "tile_kernel"]
    check([launch for launch in launches if launch not in of_the_router])
    for launch in of_the_router:  # float32 has no tensor cores
        assert compile_launch(launch).stack_bytes == 0, launch


@pytest.mark.parametrize("kernel", tiered(("dense", *ROW_FORMATS, *FP8_LAYOUTS), ("dense", "q4_k", "fp8_block")))
def test_experts_compile_without_spilling(kernel: str) -> None:
    launches = launches_of(mixture(kernel))
    assert len(launches) <= 8
    check(launches)


@pytest.mark.parametrize(("head_dim", "window"), [(64, 0), (128, 4096)])
def test_attention_with_soft_cap_and_sinks_compiles_without_spilling(head_dim: int, window: int) -> None:
    launches = launches_of([attention(head_dim, window=window, softcap=50.0, with_sinks=True)])
    check([launch for launch in launches if launch.function.__name__ != "rope_kv_write_kernel"])


def test_attention_with_the_widest_heads_fits() -> None:
    """Of 512 elements, as Gemma 4's full layers have: with a spill of a few registers."""
    for launch in launches_of([attention(512)]):
        compiled = compile_launch(launch)
        assert compiled.shared_bytes <= H200.shared_bytes, launch
        assert compiled.stack_bytes <= 64, launch


@pytest.mark.parametrize("heads", [16, 128])
def test_attention_over_latents_compiles_without_spilling(heads: int) -> None:
    launches = launches_of([latent_attention(heads)])
    assert {launch.function.__name__ for launch in launches} == {
        "latent_write_kernel",
        "latent_decode_kernel",
        "attention_combine_kernel",
        "latent_mixed_kernel",
    }
    check(launches)
    if heads == 128:
        decode = next(launch for launch in launches if launch.function.__name__ == "latent_decode_kernel")
        assert "wgmma.mma_async" in compile_launch(decode).ptx


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "rank", "rope"),
    [(16, 512, 64), (128, 512, 64), *(pytest.param(*shape, marks=pytest.mark.exhaustive) for shape in ((20, 512, 64), (40, 256, 32)))],
)
def test_every_candidate_of_attention_over_latents_compiles_without_spilling(heads: int, rank: int, rope: int) -> None:
    """Heads that fill a program's rows, and such as do not."""
    check(candidates_of(latent_attention(heads, rank, rope)))


@pytest.mark.parametrize(
    "kernel", [*COMMON, *(pytest.param(format, marks=pytest.mark.exhaustive) for format in ROW_FORMATS if format not in COMMON)]
)
def test_linears_compile_without_spilling(kernel: str) -> None:
    launches = launches_of(linears(kernel))
    assert len(launches) <= 22  # each takes a build some seconds
    check(launches)
