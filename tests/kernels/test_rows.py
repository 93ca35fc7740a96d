"""rms_norm and silu_mul: near the exact values, and their quantizing twins exactly their quantization."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.kernels.linear import quantize_activations
from engine.kernels.rows import reference

pytestmark = pytest.mark.usefixtures("kernel_library")

EPS = 1e-5
FEATURES = [1, 31, 32, 40, 64, 100, 576, 1537]


def rows(features: int, count: int = 9) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(features)) * 3


def ulps(actual: Tensor, exact: Tensor) -> float:
    """Largest error in units of float32's relative precision; what e^-87 and less contributes may be lost."""
    return float(((actual.double() - exact).abs() / exact.abs().clamp_min(1e-27)).max()) * 2**23


@pytest.mark.parametrize("features", FEATURES)
def test_rms_norm_is_near_the_exact_value(features: int) -> None:
    x, weight = rows(features), rows(features, 1)[0] + 1
    exact = reference.rms_norm(x.double(), weight.double(), EPS)
    # the mean's error is half that of a sum of `features` terms in lanes of 32; two products and a root follow
    assert ulps(torch.ops.engine.rms_norm(x, weight, EPS), exact) <= 4 + features / 64


@pytest.mark.parametrize("features", FEATURES)
def test_silu_mul_is_near_the_exact_value(features: int) -> None:
    gate, up = rows(features) * 10, rows(features + 1)[:, 1:]
    assert ulps(torch.ops.engine.silu_mul(gate, up), reference.silu_mul(gate.double(), up.double())) <= 8


def test_silu_mul_far_out() -> None:
    gate = torch.tensor([[-torch.inf, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, torch.nan]])
    out = torch.ops.engine.silu_mul(gate, torch.ones_like(gate))[0]
    assert out[[1, 3]].abs().max() < 1e-30
    assert torch.equal(out[4:7], gate[0, 4:7])
    assert out[[0, 7]].isnan().all()  # -inf * 0, as in PyTorch before it became a formula of its own
    assert abs(float(out[2])) < 1e-35


def operators() -> list[tuple[Callable[..., Tensor], Callable[..., Tensor], int]]:
    engine = torch.ops.engine
    return [(engine.rms_norm, engine.rms_norm_quantize, 1), (engine.silu_mul, engine.silu_mul_quantize, 2)]


def call(operator: Callable[..., Tensor], matrices: int, x: Tensor) -> Tensor:
    return operator(x, x.flip(0)) if matrices == 2 else operator(x, torch.linspace(-1, 2, x.shape[1]), EPS)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("which", [0, 1])
def test_the_twin_quantizes_the_same_values(which: int, features: int) -> None:
    plain, quantizing, matrices = operators()[which]
    x = rows(features)
    assert torch.equal(call(quantizing, matrices, x), quantize_activations(call(plain, matrices, x)))


@pytest.mark.parametrize("which", [0, 1])
def test_rows_are_alone_and_may_lie_apart(which: int) -> None:
    x = rows(100, 300)
    wide = torch.full((300, 150), torch.nan)
    wide[:, 20:120] = x
    for operator in operators()[which][:2]:
        if which == 0:
            weight = torch.linspace(-1, 2, 100)
            whole = operator(x, weight, EPS)
            assert torch.equal(operator(wide[:, 20:120], weight, EPS), whole)
            assert all(torch.equal(operator(x[i : i + 1], weight, EPS)[0], whole[i]) for i in (0, 7, 299))
        else:
            whole = operator(x, x)
            assert torch.equal(operator(wide[:, 20:120], wide[:, 20:120]), whole)
            assert all(torch.equal(operator(x[i : i + 1], x[i : i + 1])[0], whole[i]) for i in (0, 7, 299))


def test_wrong_shapes_are_errors() -> None:
    engine, x = torch.ops.engine, rows(32)
    with pytest.raises(RuntimeError, match="differ in shape"):
        engine.silu_mul(x, x[:, :31].contiguous())
    with pytest.raises(RuntimeError, match="31 elements for 32 features"):
        engine.rms_norm(x, torch.ones(31), EPS)
    with pytest.raises(RuntimeError, match="wrong dtype"):
        engine.quantize(x.double())
