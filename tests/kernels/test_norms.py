"""rms_norm and layer_norm: near the exact values, their quantizing twins exactly their quantization, rows alone."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from row_tensors import FEATURES, inside_wider_rows, rows, ulps
from torch import Tensor

from engine.kernels.linear.activations import QUANTIZERS
from engine.kernels.norms import reference

pytestmark = pytest.mark.usefixtures("kernel_library")

EPS = 1e-5
NORMS = ["rms_norm", "layer_norm"]


def operator(name: str) -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = getattr(torch.ops.engine, name)
    return found


Arguments = tuple[Any, ...]


def arguments(name: str, features: int, weight: bool = True, bias: bool = True, residual: bool = True, count: int = 9) -> Arguments:
    vectors = [rows(features + n, 1)[0, :features] + 1 if wanted else None for n, wanted in ((1, weight), (2, bias))]
    return (*vectors[: 1 if name == "rms_norm" else 2], rows(features + 3, count)[:, 1:-2] if residual else None, EPS)


def wide(values: Arguments) -> Arguments:
    return tuple(value.double() if isinstance(value, Tensor) else value for value in values)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("weight", [True, False])
def test_a_norm_is_near_the_exact_value(name: str, features: int, weight: bool) -> None:
    x, others = rows(features), arguments(name, features, weight, bias=False, residual=False)
    exact = getattr(reference, name)(x.double(), *wide(others))
    # the mean's error is half that of a sum of `features` terms in lanes of 32; two products and a root follow
    allowed = 4 + features / 64
    actual = operator(name)(x, *others)
    if name == "rms_norm":
        assert ulps(actual, exact) <= allowed
    else:  # what x - mean cancels is lost: relative to the row's largest, or to what a rounding error of x becomes
        largest = exact.abs().amax(1, keepdim=True).clamp_min(2**-20 * float(x.abs().max()) / EPS**0.5)
        assert float(((actual - exact).abs() / largest).max()) * 2**23 <= allowed


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("weight", "bias", "residual"), [*product([True, False], repeat=3)])
def test_what_follows_a_norm_is_added_in_this_order(name: str, weight: bool, bias: bool, residual: bool) -> None:
    x = rows(100)
    *vectors, added, eps = arguments(name, 100, weight, bias, residual)
    expected = operator(name)(x, None, *(None for _ in vectors[1:]), None, eps)
    expected = expected if vectors[0] is None else vectors[0] * expected
    for term in (*vectors[1:], added):
        expected = expected if term is None else expected + term
    assert torch.equal(operator(name)(x, *vectors, added, eps), expected)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("name", NORMS)
def test_the_twin_quantizes_the_same_values(name: str, features: int) -> None:
    x, others = rows(features), arguments(name, features)
    for quantizer in QUANTIZERS:
        assert torch.equal(operator(f"{name}_{quantizer}")(x, *others), operator(quantizer)(operator(name)(x, *others)))


@pytest.mark.parametrize("twin", ["", *(f"_{quantizer}" for quantizer in QUANTIZERS)])
@pytest.mark.parametrize("name", NORMS)
def test_rows_are_alone_and_may_lie_apart(name: str, twin: str) -> None:
    x = rows(100, 300)
    *vectors, residual, eps = arguments(name, 100, count=300)
    assert isinstance(residual, Tensor)
    norm = operator(name + twin)
    whole = norm(x, *vectors, residual, eps)
    assert torch.equal(norm(inside_wider_rows(x), *vectors, inside_wider_rows(residual), eps), whole)
    for row in (0, 7, 299):
        assert torch.equal(norm(x[row : row + 1], *vectors, residual[row : row + 1], eps)[0], whole[row])


@pytest.mark.parametrize("name", NORMS)
def test_a_nan_stays_in_its_row(name: str) -> None:
    x, others = rows(40), arguments(name, 40)
    whole = operator(name)(x, *others)
    x[3, 7] = torch.nan
    spoilt = operator(name)(x, *others)
    assert spoilt[3].isnan().all()
    assert torch.equal(spoilt[[0, 1, 2, 4]], whole[[0, 1, 2, 4]])


def test_wrong_shapes_are_errors() -> None:
    engine, x = torch.ops.engine, rows(32)
    with pytest.raises(RuntimeError, match="weight has 31 elements for 32 features"):
        engine.rms_norm(x, torch.ones(31), None, EPS)
    with pytest.raises(RuntimeError, match="bias has 33 elements for 32 features"):
        engine.layer_norm(x, torch.ones(32), torch.ones(33), None, EPS)
    with pytest.raises(RuntimeError, match="residual is not of the result's shape"):
        engine.rms_norm(x, None, x[:5], EPS)
    with pytest.raises(RuntimeError, match="x has the wrong dtype"):
        engine.rms_norm(x.double(), None, None, EPS)


@pytest.mark.parametrize("shape", [(9, 3, 20), (300, 2, 64), (1, 5, 100)])
@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_heads_are_rows_of_their_own(name: str, each: bool, shape: tuple[int, int, int]) -> None:
    tokens, heads, size = shape
    x = rows(heads * size, tokens)
    vectors = [rows(size + n, heads)[:, :size].contiguous() + 1 for n in range(1 if name == "rms_norm" else 2)]
    vectors = vectors if each else [vector[0].contiguous() for vector in vectors]
    out = operator(f"{name}_heads")(inside_wider_rows(x).unflatten(1, (heads, size)), *vectors, EPS)
    for head in range(heads):
        of_head = [vector[head] if each else vector for vector in vectors]
        assert torch.equal(out[:, head], operator(name)(x[:, head * size : (head + 1) * size], *of_head, None, EPS))
    nothing = [None for _ in vectors]
    plain = operator(name)(x.view(-1, size), *nothing, None, EPS)
    assert torch.equal(operator(f"{name}_heads")(x.view(shape), *nothing, EPS), plain.view(shape))


def test_vectors_that_are_not_those_of_the_heads_are_errors() -> None:
    x = rows(60).view(9, 3, 20)
    with pytest.raises(RuntimeError, match="weight is not that of 3 heads of 20"):
        torch.ops.engine.rms_norm_heads(x, torch.ones(2, 20), EPS)
    with pytest.raises(RuntimeError, match="bias is not that of 3 heads of 20"):
        torch.ops.engine.layer_norm_heads(x, None, torch.ones(19), EPS)
