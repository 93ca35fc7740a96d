"""Row operators and embedding for NVIDIA, interpreted: no further from the exact values than bfloat16 arithmetic."""

import pytest
import torch
from torch import Tensor
from triton_launches import Call, Given, interpreter, worst_error

from engine.kernels.row_operators import FUNCTIONS
from engine.kernels.row_references import ROW_REFERENCES

EPS = 1e-5
TOKENS = [1, 2, 7, 70]


def rows(count: int, features: int, seed: int = 0) -> Tensor:
    return (torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * 3).bfloat16()


def run(operator: str, *arguments: object, count: int, features: int, dtype: str = "bfloat16") -> Tensor:
    call = Call(operator=operator, arguments=arguments, shape=("T", features), dtype=dtype, dims={"T": count})
    return interpreter().run(call)[0]


def check(name: str, x: Tensor, *arguments: object, dtype: str = "bfloat16") -> None:
    """Against the exact result, of which the kernel rounds once."""
    actual = run(name, *map(given, (x, *arguments)), count=len(x), features=x.shape[1], dtype=dtype)
    exact = ROW_REFERENCES[name](*(argument.double() if isinstance(argument, Tensor) else argument for argument in (x, *arguments)))
    assert worst_error(actual, exact) <= worst_error(exact.to(actual.dtype), exact) * (1 + 2**-6)


def given(argument: object) -> object:
    if not isinstance(argument, Tensor):
        return argument
    return Given(argument, ("T", argument.shape[1])) if argument.dim() == 2 else Given(argument)


@pytest.mark.parametrize("features", [1, 100, 576, 2048])
@pytest.mark.parametrize("count", TOKENS)
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_norms(name: str, count: int, features: int) -> None:
    wide, weight, bias = rows(count, features + 24), rows(1, features, 1)[0].float(), rows(1, features, 2)[0].float()
    x, residual = wide[:, 16 : 16 + features], rows(count, features, 3)
    biases = (bias,) if name == "layer_norm" else ()
    check(name, x, weight, *biases, residual, EPS)
    check(name, x, None, *(None for _ in biases), None, EPS)
    check(name, x, weight, *(None for _ in biases), None, EPS)


@pytest.mark.parametrize("features", [1, 100, 1536])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_gates_of_the_halves_of_a_row(name: str, features: int) -> None:
    for count in (1, 7):
        both = rows(count, 2 * features)
        check(name, both[:, :features])
        check(f"{name}_mul", both[:, :features], both[:, features:])


@pytest.mark.parametrize("count", TOKENS)
def test_xielu(count: int) -> None:
    check("xielu", rows(count, 1100), *(torch.tensor([parameter]) for parameter in (0.8, 0.3, 0.5, -1e-6)))


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_soft_cap_of_logits(cap: float) -> None:
    x = torch.cat((torch.logspace(-20, 20, 1100), torch.linspace(-3, 3, 1000)))[None] * torch.tensor([[1.0], [-7.0]])
    actual = run("soft_cap", Given(x, ("T", 2100)), cap, count=2, features=2100, dtype="float32")
    exact = ROW_REFERENCES["soft_cap"](x.double(), cap)
    assert ((actual - exact).abs() <= 8 * 2**-23 * exact.abs()).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_embedding_copies_rows_and_stays_inside(dtype: str) -> None:
    table = rows(50, 1100)
    tokens = torch.tensor([3, 49, 0, -1, 50, 2**31 - 1], dtype=torch.int32)
    actual = run("embedding_rows_dense", Given(tokens, ("T",)), Given(table), 1100, 1.0, count=6, features=1100, dtype=dtype)
    expected = table[[3, 49, 0, 0, 49, 49]]
    assert torch.equal(actual, expected.to(actual.dtype))
    scaled = run("embedding_rows_dense", Given(tokens, ("T",)), Given(table), 1100, 0.3, count=6, features=1100, dtype=dtype)
    assert torch.equal(scaled, (expected.float() * 0.3).to(scaled.dtype))
