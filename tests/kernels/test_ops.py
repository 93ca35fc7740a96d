"""Schemas and shape functions: true to the kernels, and safe for symbolic sizes."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from weight_blocks import random_blocks

from engine.kernels import ops
from engine.kernels.attention.op import attention
from engine.kernels.attention.options import AttentionOptions
from engine.kernels.formats import PANEL_KERNELS
from engine.kernels.linear import activations_for, embedding, linear
from engine.kernels.linear.activations import QUANTIZERS
from engine.kernels.linear.formats import pack_blocks, pack_dense
from engine.kernels.moe.options import RouteOptions
from engine.kernels.row_operators import ROW_OPERATORS, TWINS, Kind, twin
from engine.kernels.row_references import ROW_REFERENCES

OPTIONS = AttentionOptions(scale=0.2)
CHECKS = ("test_schema", "test_faketensor")


@pytest.fixture(autouse=True)
def _fakes(kernel_library: object) -> None:
    ops.register_fakes()
    ops.register_fakes()


INPUTS = 256
"""Whole blocks of every format."""


def packed_weight(kernel: str) -> Tensor:
    if kernel in ("dense", "bf16"):
        return pack_dense(torch.randn(40, INPUTS, dtype=torch.bfloat16 if kernel == "bf16" else torch.float32))
    return pack_blocks(kernel, random_blocks(kernel, 40, INPUTS, seed=1))


def attention_arguments() -> tuple[Tensor, ...]:
    cache = torch.zeros(3, 2, 16, 32)
    return (
        torch.randn(20, 6, 32),
        torch.randn(20, 2, 32),
        torch.randn(20, 2, 32),
        cache,
        cache.clone(),
        torch.tensor([0, 20], dtype=torch.int32),
        torch.tensor([20], dtype=torch.int32),
        torch.tensor([[0, 1]], dtype=torch.int32),
        torch.arange(20, dtype=torch.int32),
    )


@pytest.mark.parametrize("kernel", PANEL_KERNELS)
@pytest.mark.parametrize("extras", [True, False])
def test_linear(kernel: str, extras: bool) -> None:
    x = activations_for(kernel, torch.randn(5, INPUTS))
    bias, residual = (torch.randn(40), torch.randn(5, 40)) if extras else (None, None)
    arguments = (x, packed_weight(kernel), bias, residual, 40, 0.5)
    torch.library.opcheck(getattr(torch.ops.engine, f"linear_{kernel}"), arguments, test_utils=CHECKS)


@pytest.mark.parametrize("extras", [True, False])
def test_mixed_linear(extras: bool) -> None:
    bias, residual = (torch.randn(80), torch.randn(5, 80)) if extras else (None, None)
    w = torch.cat([packed_weight(kernel).flatten() for kernel in ("q8_0", "q4_k")])
    arguments = (activations_for("mixed", torch.randn(5, INPUTS)), w, bias, residual, "q8_0:40+q4_k:40", 0.5)
    torch.library.opcheck(torch.ops.engine.linear_mixed, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("kernel", PANEL_KERNELS)
def test_embedding(kernel: str) -> None:
    arguments = (torch.arange(7, dtype=torch.int32), packed_weight(kernel), INPUTS, 0.5)
    torch.library.opcheck(getattr(torch.ops.engine, f"embedding_{kernel}"), arguments, test_utils=CHECKS)


ARGUMENTS: dict[Kind, object] = {
    "rows": torch.randn(5, 70),
    "rows?": torch.randn(5, 70),
    "heads": torch.randn(5, 2, 70),
    "numbers": torch.randn(5, 2),
    "vector": torch.randn(70),
    "vector?": torch.randn(70),
    "scalar": torch.randn(1),
    "float": 0.5,
}


@pytest.mark.parametrize("name", ROW_OPERATORS)
def test_row_operators(name: str) -> None:
    operator = ROW_OPERATORS[name]
    all_given = tuple(ARGUMENTS[kind] for _, kind in operator.arguments)
    without = tuple(None if kind.endswith("?") else ARGUMENTS[kind] for _, kind in operator.arguments)
    for arguments in (all_given, without):
        for called in (name, *(twin(name, quantizer) for quantizer in QUANTIZERS if operator in TWINS)):
            torch.library.opcheck(getattr(torch.ops.engine, called), arguments, test_utils=CHECKS)


def test_experts() -> None:
    """Routes of five tokens to two of four experts each, in both forms of the products, and their sum."""
    engine = torch.ops.engine
    route = (torch.randn(5, 4), torch.randn(4), torch.randn(4), *RouteOptions(chosen=2, score="softmax").arguments)
    routes = engine.route(*route)
    order = engine.sort_routes(routes, 4)
    rows = engine.gather_rows(torch.randn(5, 64), routes, order)
    w = pack_blocks("q8_0", random_blocks("q8_0", 4 * 32, 64, seed=1))
    weight, bias = torch.randn(4 * 32, 64), torch.randn(4 * 32)
    for operator, arguments in (
        (engine.route, route),
        (engine.route_table, (routes, 4)),
        (engine.sort_routes, (routes, 4)),
        (engine.gather_rows, (torch.randn(5, 64), routes, order)),
        (engine.weigh_rows, (torch.randn(5, 64), routes, order)),
        (engine.experts_mixed, (engine.quantize(rows), w, bias, order, "q8_0:32", 4)),
        (engine.experts_dense, (rows, pack_dense(weight), bias, order, 32, 4)),
        (engine.experts_bf16, (engine.round_bf16(rows), pack_dense(weight.bfloat16()), None, order, 32, 4)),
        (engine.combine_experts, (torch.randn(10, 32), routes, order, torch.randn(5, 32), torch.rand(5, 1), torch.randn(5, 32), 0.5, True)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("features", [70, 71])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantizers(quantizer: str, features: int) -> None:
    torch.library.opcheck(getattr(torch.ops.engine, quantizer), (torch.randn(5, features),), test_utils=CHECKS)


def test_every_row_operator_has_a_reference() -> None:
    assert ROW_REFERENCES.keys() == ROW_OPERATORS.keys()


def test_attention() -> None:
    torch.library.opcheck(torch.ops.engine.attention, (*attention_arguments(), *[None] * 6, *OPTIONS.scalars()), test_utils=CHECKS)


def test_sizes_stay_symbolic() -> None:
    """Traced with one number of tokens, the graph holds for another."""
    w = packed_weight("q8_0")
    bias = torch.randn(40)

    def step(tokens: Tensor, x: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return embedding("q8_0", tokens, w, INPUTS), linear("q8_0", x, w, bias, 40)

    traced = make_fx(step, tracing_mode="symbolic")(torch.arange(5, dtype=torch.int32), torch.randn(6, INPUTS), w, bias)
    tokens, x = torch.arange(9, dtype=torch.int32), torch.randn(3, INPUTS)
    for result, expected in zip(traced(tokens, x, w, bias), step(tokens, x, w, bias), strict=True):
        assert torch.equal(result, expected)


def test_attention_output_is_packed_even_for_sliced_queries() -> None:
    q, *others = attention_arguments()
    wide = torch.zeros(20, 400)
    wide[:, :192] = q.flatten(1)
    real = attention(wide[:, :192].unflatten(1, (6, 32)), *others, OPTIONS)  # type: ignore[call-arg, arg-type]
    with torch._subclasses.FakeTensorMode() as mode:
        fake_arguments = [mode.from_tensor(argument) for argument in (wide, *others)]
        fake = attention(fake_arguments[0][:, :192].unflatten(1, (6, 32)), *fake_arguments[1:], OPTIONS)  # type: ignore[call-arg, arg-type]
    assert fake.shape == real.shape
    assert fake.stride() == real.stride() == (192, 32, 1)
