"""Activation operators, the soft cap, clips and sums: near the exact values, their twins exactly their quantization, rows alone."""

from collections.abc import Callable

import pytest
import torch
from row_tensors import FEATURES, inside_wider_rows, rows
from torch import Tensor

from engine.kernels.activations import reference
from engine.kernels.linear.activations import QUANTIZERS
from engine.kernels.row_operators import CLAMPED, FUNCTIONS, ROW_OPERATORS, TWINS

pytestmark = pytest.mark.usefixtures("kernel_library")

XIELU = tuple(map(torch.tensor, (0.8, 0.3, 0.5, -1e-6)))
ROUNDING = 2.0**-23


def operator(name: str) -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = getattr(torch.ops.engine, name)
    return found


def everywhere() -> Tensor:
    """One row of numbers of every size, both signs, and most where functions bend."""
    sizes = torch.logspace(-30, 30, 4001, dtype=torch.float64)
    near = torch.linspace(0, 20, 40001, dtype=torch.float64)
    positive = torch.cat((sizes, near)).float()
    return torch.cat((positive, -positive)).unsqueeze(0)


def exact(name: str, x: Tensor) -> Tensor:
    """In float64, by formulas in which nothing cancels."""
    y = x.double()
    match name:
        case "gelu":
            value: Tensor = y / 2 * torch.special.erfc(-y / 2**0.5)
        case "gelu_tanh":
            value = y * torch.sigmoid((8 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))
        case _:
            value = reference.FUNCTIONS[name](y)
    return value


def exponent_in(name: str, x: Tensor) -> Tensor:
    """How large the exponent is that the function takes of x: its rounding errors become relative ones of the result."""
    y = x.double()
    match name:
        case "gelu_tanh":
            exponent: Tensor = (8 / torch.pi) ** 0.5 * (y + 0.044715 * y**3).abs()
        case "quick_gelu":
            exponent = 1.702 * y.abs()
        case _:
            exponent = torch.zeros_like(y)
    return exponent


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_near_the_exact_value(name: str) -> None:
    x = everywhere()
    expected = exact(name, x)
    allowed = (8 + 2 * exponent_in(name, x)) * ROUNDING * expected.abs()
    error = (operator(name)(x).double() - expected).abs()
    error[expected.abs() > 3e38] = 0  # beyond float32
    assert (error <= allowed + 1e-30).all(), x[error > allowed + 1e-30]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_far_out_it_is_what_pytorch_says_in_float64(name: str) -> None:
    x = torch.tensor([[-torch.inf, -1e30, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e15, torch.inf, torch.nan]])
    torch.testing.assert_close(operator(name)(x), reference.FUNCTIONS[name](x.double()).float(), rtol=1e-6, atol=1e-30, equal_nan=True)


def test_xielu_is_near_the_exact_value() -> None:
    x = everywhere().clamp(-1e18, 1e18)
    alpha_p, alpha_n, beta, eps = (float(parameter) for parameter in XIELU)
    y = x.double()
    bent = torch.where(y > 0, alpha_p * y * y, (torch.expm1(y.clamp_max(eps)) - y) * alpha_n)
    error = (operator("xielu")(x, *XIELU).double() - (bent + beta * y)).abs()
    # e^x - 1 and x cancel near 0
    sizes = torch.where(y > 0, alpha_p * y * y, (torch.expm1(y.clamp_max(eps)).abs() + y.abs()) * alpha_n) + beta * y.abs()
    assert (error <= 8 * ROUNDING * sizes + 1e-36).all()
    far = torch.tensor([[-torch.inf, torch.inf, torch.nan]])
    assert operator("xielu")(far, *XIELU)[0, 1] == torch.inf
    assert operator("xielu")(far, *XIELU)[0, 2].isnan()


@pytest.mark.parametrize("cap", [30.0, 50.0, 0.5])
def test_soft_cap_is_near_the_exact_value(cap: float) -> None:
    x = everywhere()
    expected = reference.soft_cap(x.double(), cap)
    assert ((operator("soft_cap")(x, cap).double() - expected).abs() <= 4 * ROUNDING * expected.abs() + 1e-36).all()
    special = torch.tensor([[torch.inf, -torch.inf, torch.nan]])
    torch.testing.assert_close(operator("soft_cap")(special, cap), torch.tensor([[cap, -cap, torch.nan]]), equal_nan=True)


def calls(name: str, x: Tensor) -> tuple[object, ...]:
    """The operator's arguments after x."""
    others: dict[str, tuple[object, ...]] = {"xielu": XIELU, "soft_cap": (30.0,), "clip": (2.0,), "scaled_add": (x.flip(0), 0.3)}
    others["scale"] = (torch.tensor(0.7),)
    if name.endswith("_mul_clamped"):
        return x.flip(0), 1.5, 1.0
    return others.get(name, (x.flip(0),) if name.endswith("_mul") else ())


OPERATORS = [name for name in ROW_OPERATORS if "norm" not in name and "heads" not in name]
WITH_TWINS = [name for name in OPERATORS if ROW_OPERATORS[name] in TWINS]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gate_is_the_function_times_the_other_matrix(name: str) -> None:
    gate, up = rows(100), rows(101)[:, 1:]
    assert torch.equal(operator(f"{name}_mul")(gate, up), operator(name)(gate) * up)


@pytest.mark.parametrize("name", CLAMPED)
def test_a_clamped_gate_is_that_of_clamped_operands(name: str) -> None:
    gate, up = rows(100), rows(101)[:, 1:]
    clamped = operator(f"{name}_mul")(gate.clamp(max=1.5), up.clamp(-1.5, 1.5) + 1)
    assert torch.equal(operator(f"{name}_mul_clamped")(gate, up, 1.5, 1.0), clamped)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("name", WITH_TWINS)
def test_the_twin_quantizes_the_same_values(name: str, features: int) -> None:
    x = rows(features)
    for quantizer in QUANTIZERS:
        assert torch.equal(operator(f"{name}_{quantizer}")(x, *calls(name, x)), operator(quantizer)(operator(name)(x, *calls(name, x))))


@pytest.mark.parametrize("name", OPERATORS)
def test_rows_are_alone_and_may_lie_apart(name: str) -> None:
    x = rows(100, 300)
    for operation in (operator(name), *(operator(f"{name}_{quantizer}") for quantizer in QUANTIZERS if name in WITH_TWINS)):
        whole = operation(x, *calls(name, x))
        apart = [inside_wider_rows(other) if isinstance(other, Tensor) and other.dim() else other for other in calls(name, x)]
        assert torch.equal(operation(inside_wider_rows(x), *apart), whole)
        for row in (0, 7, 299):
            alone = [other[row : row + 1] if isinstance(other, Tensor) and other.dim() else other for other in calls(name, x)]
            assert torch.equal(operation(x[row : row + 1], *alone)[0], whole[row])


@pytest.mark.parametrize("features", FEATURES)
def test_clips_products_and_sums_are_those_of_pytorch_bit_for_bit(features: int) -> None:
    x = rows(features, 300)
    x[0, 0], x[1, 0], x[2, 0] = torch.nan, torch.inf, -torch.inf
    torch.testing.assert_close(operator("clip")(x, 2.1), x.clamp(-2.1, 2.1), rtol=0, atol=0, equal_nan=True)
    for factor in (torch.tensor([0.7]), torch.tensor([-1e30])):
        torch.testing.assert_close(operator("scale")(x, factor), x * factor, rtol=0, atol=0, equal_nan=True)
    for multiplier in (1.0, 0.3, -1e30):
        added = operator("scaled_add")(x, x.flip(0), multiplier)
        torch.testing.assert_close(added, x + x.flip(0) * multiplier, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1, 5), (7, 3, 64), (40, 6, 33)])
def test_heads_are_scaled_bit_for_bit(shape: tuple[int, int, int]) -> None:
    tokens, heads, size = shape
    x, factors = rows(heads * size, tokens), rows(heads, tokens)
    out = operator("scale_heads")(inside_wider_rows(x).unflatten(1, (heads, size)), inside_wider_rows(factors))
    assert torch.equal(out, x.view(shape) * factors[:, :, None])


def test_a_long_row_is_that_of_short_ones() -> None:
    """Rows wider than one thread's share, with an end that fills no group."""
    x = rows(50_001, 2)
    parts = [operator("soft_cap")(part, 30.0) for part in x.split(10_000, dim=1)]
    assert torch.equal(operator("soft_cap")(x, 30.0), torch.cat(parts, dim=1))
    for quantizer in QUANTIZERS:
        assert torch.equal(operator(f"silu_{quantizer}")(x), operator(quantizer)(operator("silu")(x)))


def test_wrong_arguments_are_errors() -> None:
    engine, x = torch.ops.engine, rows(32)
    with pytest.raises(RuntimeError, match="differ in shape"):
        engine.silu_mul(x, x[:, :31].contiguous())
    with pytest.raises(RuntimeError, match="wrong dtype"):
        engine.quantize(x.double())
    with pytest.raises(RuntimeError, match="alpha_p must have one element, not 2"):
        engine.xielu(x, torch.ones(2), *XIELU[1:])
    with pytest.raises(RuntimeError, match="cap must be positive"):
        engine.soft_cap(x, 0.0)
    with pytest.raises(RuntimeError, match="limit must be positive"):
        engine.clip(x, 0.0)
    with pytest.raises(RuntimeError, match="factor must have one element, not 2"):
        engine.scale(x, torch.ones(2))
    with pytest.raises(RuntimeError, match="x and y differ in shape"):
        engine.scaled_add(x, x[1:], 1.0)
    with pytest.raises(RuntimeError, match="factors are not one for each of 4 heads"):
        engine.scale_heads(x.unflatten(1, (4, 8)), x[:, :3].contiguous())
