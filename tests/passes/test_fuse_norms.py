"""fuse_rms_norm, fuse_layer_norm, fuse_post_norm: counts, values, and where they must not fire."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from traced_graphs import interpret, operators, pack, trace

from engine.passes.assign_weight_kernels import assign_weight_kernels
from engine.passes.fuse_head_norm import fuse_head_norm
from engine.passes.fuse_layer_norm import fuse_layer_norm
from engine.passes.fuse_post_norm import fuse_post_norm
from engine.passes.fuse_quantize import fuse_quantize
from engine.passes.fuse_residual_add import fuse_residual_add
from engine.passes.fuse_rms_norm import fuse_rms_norm
from engine.passes.merge_sibling_linears import merge_sibling_linears

EPS = 1e-5


def rms(x: Tensor, weight: Tensor | None = None) -> Tensor:
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    return normed if weight is None else weight * normed


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def refs() -> dict[str, Tensor]:
    return {"input:x": random(5, 64), "weight:norm": random(64), "weight:bias": random(64) + 1}


Function = Callable[[Tensor, Tensor, Tensor], Tensor]
LAYER_NORMS: list[Function] = [
    lambda x, w, b: functional.layer_norm(x, (64,), w, b, EPS),
    lambda x, w, b: functional.layer_norm(x, (64,), w, None, EPS),
    lambda x, w, b: functional.layer_norm(x, (64,), None, None, 1e-6),
    lambda x, w, b: functional.layer_norm(x, (64,), w, b),  # whose eps is the default
]
RMS_NORMS: list[Function] = [
    lambda x, w, b: rms(x, w),
    lambda x, w, b: rms(x) * w,
    lambda x, w, b: rms(x),
    lambda x, w, b: x + rms(x),
    lambda x, w, b: rms(x, w + 1),
]


@pytest.mark.parametrize(
    ("rewrite", "name", "function"),
    [
        *((fuse_layer_norm, "layer_norm", function) for function in LAYER_NORMS),
        *((fuse_rms_norm, "rms_norm", function) for function in RMS_NORMS),
    ],
)
def test_a_norm_over_rows_is_one_operator(rewrite: Callable[..., int], name: str, function: Function) -> None:
    values = refs()
    module = trace(function, values)
    assert rewrite(module.graph) == 1
    assert operators(module).count(name) == 1
    assert not {"aten.rsqrt", "aten.layer_norm"} & set(operators(module))
    torch.testing.assert_close(interpret(module, values), function(*values.values()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))),
        lambda x, w: w * (x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + EPS)),
        lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + EPS)),
        lambda x, w: w * ((x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)),
        lambda x, w: rms(x.view(5, 2, 32)),
        lambda x, w: functional.layer_norm(x.view(5, 2, 32), (32,), w[:32]),
        lambda x, w: functional.layer_norm(x.view(5, 64), (5, 64)),
    ],
)
def test_what_is_no_norm_over_rows_stays(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    graph = trace(function, {"input:x": torch.randn(5, 64), "weight:norm": torch.randn(64)}).graph
    assert fuse_rms_norm(graph) + fuse_layer_norm(graph) == 0


def test_normalized_rows_with_a_second_reader_keep_their_weight_outside() -> None:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        normed = rms(x)
        return weight * normed + normed

    values = {"input:x": random(5, 64), "weight:norm": random(64)}
    module = trace(function, values)
    assert fuse_rms_norm(module.graph) == 1
    assert operators(module) == ["rms_norm", "aten.mul.Tensor", "aten.add.Tensor"]
    torch.testing.assert_close(interpret(module, values), function(*values.values()))


POST_NORMS: list[Function] = [
    lambda x, w, b: x + rms(x.sin(), w),
    lambda x, w, b: rms(x.sin()) + x,
    lambda x, w, b: x + functional.layer_norm(x.sin(), (64,), w, b, EPS),
]


@pytest.mark.parametrize("function", POST_NORMS)
def test_a_norm_adds_the_residual_stream(function: Function) -> None:
    values = refs()
    module = trace(function, values)
    assert fuse_rms_norm(module.graph) + fuse_layer_norm(module.graph) == 1
    assert fuse_post_norm(module.graph) == 1
    assert "aten.add.Tensor" not in operators(module)
    torch.testing.assert_close(interpret(module, values), function(*values.values()))


def test_sums_that_are_no_residual_stay() -> None:
    def broadcast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return bias + rms(x, weight)

    def read_twice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed = rms(x, weight)
        return (x + normed) * normed

    for function in (broadcast, read_twice):
        module = trace(function, refs())
        assert fuse_rms_norm(module.graph) == 1
        assert fuse_post_norm(module.graph) == 0


def test_a_sandwich_of_norms() -> None:
    """Gemma's layer: a norm before the linear and one behind it."""

    def layer(x: Tensor, before: Tensor, weight: Tensor, after: Tensor) -> Tensor:
        return x + rms(functional.linear(rms(x, before), weight), after)

    values = {"input:x": random(5, 64), "weight:before": random(64), "weight:w": random(64, 64), "weight:after": random(64)}
    module = trace(layer, values)
    assign_weight_kernels(module.graph, formats={"w": "q8_0"})
    values["weight:w"] = pack("q8_0", values["weight:w"])
    before = interpret(module, values)
    assert [rewrite(module.graph) for rewrite in (fuse_residual_add, fuse_rms_norm, fuse_post_norm, fuse_quantize)] == [0, 2, 1, 1]
    assert operators(module) == ["rms_norm_quantize", "linear_q8_0", "rms_norm"]
    torch.testing.assert_close(interpret(module, values), before)


def test_a_norm_over_all_heads_of_a_merged_linear() -> None:
    """OLMo 2's queries and keys: slices of one linear, each normalized over its full width."""

    def heads(x: Tensor, q: Tensor, k: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        return rms(functional.linear(x, q), q_norm) @ rms(functional.linear(x, k), k_norm).T

    values = {"input:x": random(5, 64), "weight:q": random(64, 64), "weight:k": random(64, 64) + 1}
    values |= {"weight:q_norm": random(64), "weight:k_norm": random(64) + 1}
    module = trace(heads, values)
    assign_weight_kernels(module.graph, formats={"q": "f32", "k": "f32"})
    values |= {ref: pack("f32", values[ref]) for ref in ("weight:q", "weight:k")}
    before = interpret(module, values)
    assert merge_sibling_linears(module.graph) == 1
    assert fuse_rms_norm(module.graph) == 2
    torch.testing.assert_close(interpret(module, values), before)


def head_refs() -> dict[str, Tensor]:
    return {"input:x": random(5, 3, 20), "weight:all": random(20) + 1, "weight:each": random(3, 20) + 1, "weight:bias": random(3, 20)}


HEAD_NORMS: list[tuple[str, Callable[..., Tensor]]] = [
    ("rms_norm_heads", lambda x, w, e, b: rms(x)),
    ("rms_norm_heads", lambda x, w, e, b: rms(x, w)),
    ("rms_norm_heads", lambda x, w, e, b: rms(x, e)),
    ("layer_norm_heads", lambda x, w, e, b: functional.layer_norm(x, (20,), w)),
    ("layer_norm_heads", lambda x, w, e, b: functional.layer_norm(x, (20,), w, b[0])),
    ("layer_norm_heads", lambda x, w, e, b: functional.layer_norm(x, (20,), None, None, 1e-6) * e),
    ("layer_norm_heads", lambda x, w, e, b: functional.layer_norm(x, (20,), None, None, 1e-6) * e + b),
]


@pytest.mark.parametrize(("name", "function"), HEAD_NORMS)
def test_a_norm_over_heads_is_one_operator(name: str, function: Callable[..., Tensor]) -> None:
    values = head_refs()
    module = trace(function, values)
    assert fuse_rms_norm(module.graph) + fuse_layer_norm(module.graph) == 0
    assert fuse_head_norm(module.graph) == 1
    assert set(operators(module)) <= {name, "aten.select.int"}
    torch.testing.assert_close(interpret(module, values), function(*values.values()))


def test_what_is_no_norm_over_heads_stays() -> None:
    functions: list[Callable[..., Tensor]] = [
        lambda x, w, e, b: functional.layer_norm(x, (3, 20), e, b),
        lambda x, w, e, b: rms(x.view(5, 60)),
        lambda x, w, e, b: rms(x.view(5, 3, 4, 5)),
    ]
    for function in functions:
        assert fuse_head_norm(trace(function, head_refs()).graph) == 0
