"""fuse_into_attention: what the operator takes in, that the graph computes what it did, and where it must not fire."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from traced_graphs import interpret, operators, trace

from engine.kernels.attention.op import attention as attention_operator
from engine.kernels.attention.options import AttentionOptions
from engine.kernels.cut_operators import ATTENTION
from engine.models.parts.norm import RMSNorm
from engine.models.parts.rope import rotate
from engine.passes.eliminate_no_ops import eliminate_no_ops
from engine.passes.fuse_into_attention import fuse_into_attention

TOKENS, HEADS, DIM, ROTARY = 21, 6, 16, 6
OPTIONS = AttentionOptions(scale=DIM**-0.5, window=7, softcap=1.5)


def refs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    angles = random(TOKENS, DIM // 2)
    return {
        "input:q": random(TOKENS, HEADS * DIM),
        "input:k": random(TOKENS, 2 * DIM),
        "input:v": random(TOKENS, 2 * DIM),
        "weight:q_norm": random(DIM),
        "weight:k_norm": random(DIM),
        "input:cos": angles.cos(),
        "input:sin": angles.sin(),
        "input:partial_cos": angles[:, : ROTARY // 2].cos(),
        "input:partial_sin": angles[:, : ROTARY // 2].sin(),
        "input:q_scale": 1 + random(TOKENS).abs(),
        "kv:0.k": torch.zeros(3, 2, 16, DIM),
        "kv:0.v": torch.zeros(3, 2, 16, DIM),
        "input:cu_seqlens": torch.tensor([0, 20, 21], dtype=torch.int32),
        "input:seq_lens": torch.tensor([20, 1], dtype=torch.int32),
        "input:block_table": torch.tensor([[2, 0], [1, 0]], dtype=torch.int32),
        "input:slots": torch.tensor([*range(32, 48), *range(4), 16], dtype=torch.int32),
        "weight:sinks": torch.linspace(-1, 2, HEADS),
    }


ATTENTION_NAMES = ["0.k", "0.v", "cu_seqlens", "seq_lens", "block_table", "slots"]
NAMES = [ref.partition(":")[2] for ref in refs()]


def normed(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return RMSNorm.forward(SimpleNamespace(weight=weight, eps=eps), x)  # type: ignore[arg-type]


def partly(x: Tensor, given: SimpleNamespace) -> Tensor:
    return torch.cat((rotate(x[..., :ROTARY], given.partial_cos, given.partial_sin), x[..., ROTARY:]), dim=-1)


Rows = Callable[[Tensor, SimpleNamespace], Tensor]


def attention(on_q: Rows, on_k: Rows) -> Callable[..., Tensor]:
    """A layer's attention as a model writes it, with queries and keys prepared by the two functions."""

    def layer(*inputs: Tensor) -> Tensor:
        given = SimpleNamespace(**dict(zip(NAMES, inputs, strict=True)))
        q, k, v = (x.view(-1, heads, DIM) for x, heads in ((given.q, HEADS), (given.k, 2), (given.v, 2)))
        call: list[Any] = [on_q(q, given), on_k(k, given), v, *(getattr(given, name) for name in ATTENTION_NAMES), OPTIONS]
        out = attention_operator(*call, sinks=given.sinks)
        return out.view(-1, HEADS * DIM) * 2

    return layer


def both(function: Callable[[Tensor, SimpleNamespace, str], Tensor]) -> Callable[..., Tensor]:
    return attention(lambda x, given: function(x, given, "q_norm"), lambda x, given: function(x, given, "k_norm"))


def weighted(x: Tensor, given: SimpleNamespace, name: str) -> Tensor:
    return normed(x, vars(given)[name])


def turned(x: Tensor, given: SimpleNamespace) -> Tensor:
    return rotate(x, given.cos, given.sin)


def scaled(x: Tensor, given: SimpleNamespace) -> Tensor:
    factors: Tensor = given.q_scale[:, None, None]
    return x * factors


ROPE, NORM = ("cos", "sin"), ("q_norm", "k_norm")
FORMS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...], bool]] = {
    "rope": (both(lambda x, given, _: turned(x, given)), ROPE, False),
    "norm": (both(weighted), NORM, False),
    "norm, rope": (both(lambda x, given, name: turned(weighted(x, given, name), given)), NORM + ROPE, False),
    "rope, norm": (both(lambda x, given, name: weighted(turned(x, given), given, name)), NORM + ROPE, True),
    "partial rope": (both(lambda x, given, _: partly(x, given)), ROPE, False),
    "norm, partial rope": (both(lambda x, given, name: partly(weighted(x, given, name), given)), NORM + ROPE, False),
    "partial rope, norm": (both(lambda x, given, name: weighted(partly(x, given), given, name)), NORM + ROPE, True),
    "scale": (attention(scaled, lambda x, _: x), ("q_scale",), False),
    "rope, scale": (attention(lambda x, given: scaled(turned(x, given), given), turned), (*ROPE, "q_scale"), False),
    "rope, norm, scale": (
        attention(
            lambda x, given: scaled(weighted(turned(x, given), given, "q_norm"), given),
            lambda x, given: weighted(turned(x, given), given, "k_norm"),
        ),
        (*NORM, *ROPE, "q_scale"),
        True,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_operator_takes_it_all(form: str) -> None:
    layer, optional, norm_after_rope = FORMS[form]
    module = trace(layer, refs())
    before = interpret(module, refs())
    eliminate_no_ops(module.graph)
    assert fuse_into_attention(module.graph) == 1
    module.graph.lint()
    views = ["aten.view"] * 3
    assert operators(module) == [*views, "attention", "aten.view", "aten.mul.Tensor"]
    call = arguments(module)
    assert {name for name in ATTENTION.optional if call[name] is not None} == {*optional, "sinks"}
    assert (call["eps"], call["norm_after_rope"]) == (1e-5 if "q_norm" in optional else 0.0, norm_after_rope)
    assert {name: call[name] for name in ("scale", "window", "softcap")} == {"scale": 0.25, "window": 7, "softcap": 1.5}
    expected, actual = refs(), refs()
    torch.testing.assert_close(interpret(module, actual), before)
    interpret(trace(layer, refs()), expected)
    for cache in ("kv:0.k", "kv:0.v"):
        assert actual[cache].any()
        torch.testing.assert_close(actual[cache], expected[cache])


def arguments(module: torch.fx.GraphModule) -> dict[str, Any]:
    """Of the graph's one attention, by name."""
    (node,) = module.graph.find_nodes(op="call_function", target=torch.ops.engine.attention.default)
    return ATTENTION.named(node.args)


def interleaved(x: Tensor, given: SimpleNamespace) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = given.cos[:, None], given.sin[:, None]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(2)


def backwards(x: Tensor, given: SimpleNamespace) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = given.cos[:, None], given.sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + b * sin), dim=-1)


def inverse(squares: Tensor) -> Tensor:
    return torch.rsqrt(squares + 1e-5)


NOT_ALIKE: dict[str, Callable[..., Tensor]] = {
    "nothing": attention(lambda x, _: x, lambda x, _: x),
    "only queries": attention(turned, lambda x, _: x),
    "other angles": attention(turned, lambda x, given: rotate(x, given.sin, given.cos)),
    "another eps": attention(lambda x, given: normed(x, given.q_norm), lambda x, given: normed(x, given.k_norm, 1e-6)),
    "interleaved pairs": attention(interleaved, interleaved),
    "no rotation": attention(backwards, backwards),
    "elements in the middle": attention(*[lambda x, given: torch.cat((partly(x[..., 2:], given), x[..., :2]), dim=-1)] * 2),
    "fewer elements than angles": attention(
        *[lambda x, given: torch.cat((rotate(x[..., :ROTARY], given.partial_cos, given.partial_sin), x[..., ROTARY - 2 : -2]), dim=-1)] * 2
    ),
    "scaled keys": attention(lambda x, _: x, scaled),
    "scaled heads": attention(lambda x, given: x * given.q_scale[None, :HEADS, None], lambda x, _: x),
    "weights for tokens": attention(*[lambda x, given: given.cos[:, :1, None] * (x * inverse(x.pow(2).mean(-1, keepdim=True)))] * 2),
    "another power": attention(*[lambda x, given: given.q_norm * (x * inverse(x.pow(3).mean(-1, keepdim=True)))] * 2),
    "another axis": attention(*[lambda x, given: given.q_norm * (x * inverse(x.pow(2).mean(1, keepdim=True)))] * 2),
}


@pytest.mark.parametrize("case", NOT_ALIKE)
def test_what_is_something_else_stays(case: str) -> None:
    module = trace(NOT_ALIKE[case], refs())
    eliminate_no_ops(module.graph)
    before = operators(module)
    assert fuse_into_attention(module.graph) == 0
    assert operators(module) == before


def test_values_that_others_read_stay_for_them() -> None:
    def layer(*inputs: Tensor) -> Tensor:
        out = FORMS["rope"][0](*inputs)
        q, cos, sin = inputs[0].view(-1, HEADS, DIM), inputs[5], inputs[6]
        return out + rotate(q, cos, sin).flatten(1)

    module = trace(layer, refs())
    before = interpret(module, refs())
    assert fuse_into_attention(module.graph) == 1
    torch.testing.assert_close(interpret(module, refs()), before)
