"""fuse_rope_attention: which form of the operator it chooses, that the graph computes what it did, and where it must not fire."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from traced_graphs import interpret, operators, trace

from engine.kernels.attention import paged_attention
from engine.models.decoder import RMSNorm, rotate
from engine.passes.fuse_rope_attention import fuse_rope_attention

TOKENS, HEADS, DIM = 21, 6, 16


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
        "kv:0.k": torch.zeros(3, 2, 16, DIM),
        "kv:0.v": torch.zeros(3, 2, 16, DIM),
        "input:query_start": torch.tensor([0, 20, 21], dtype=torch.int32),
        "input:seq_lens": torch.tensor([20, 1], dtype=torch.int32),
        "input:block_table": torch.tensor([[2, 0], [1, 0]], dtype=torch.int32),
        "input:slots": torch.tensor([*range(32, 48), *range(4), 16], dtype=torch.int32),
        "weight:sinks": torch.linspace(-1, 2, HEADS),
    }


NAMES = [ref.partition(":")[2] for ref in refs()]


def normed(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return RMSNorm.forward(SimpleNamespace(weight=weight, eps=eps), x)  # type: ignore[arg-type]


Rows = Callable[[Tensor, SimpleNamespace], Tensor]


def attention(on_q: Rows, on_k: Rows) -> Callable[..., Tensor]:
    """A layer's attention as a model writes it, with queries and keys prepared by the two functions."""

    def layer(*inputs: Tensor) -> Tensor:
        given = SimpleNamespace(**dict(zip(NAMES, inputs, strict=True)))
        q, k, v = (x.view(-1, heads, DIM) for x, heads in ((given.q, HEADS), (given.k, 2), (given.v, 2)))
        out = paged_attention(on_q(q, given), on_k(k, given), v, *inputs[7:], DIM**-0.5, 7, 1.5)  # type: ignore[arg-type, call-arg]
        return out.view(-1, HEADS * DIM) * 2

    return layer


def both(function: Callable[[Tensor, SimpleNamespace, str], Tensor]) -> Callable[..., Tensor]:
    return attention(lambda x, given: function(x, given, "q_norm"), lambda x, given: function(x, given, "k_norm"))


FORMS: dict[str, Callable[..., Tensor]] = {
    "rope_paged_attention": both(lambda x, given, _: rotate(x, given.cos, given.sin)),
    "norm_paged_attention": both(lambda x, given, name: normed(x, vars(given)[name])),
    "norm_rope_paged_attention": both(lambda x, given, name: rotate(normed(x, vars(given)[name]), given.cos, given.sin)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_takes_it_all(form: str) -> None:
    module = trace(FORMS[form], refs())
    before = interpret(module, refs())
    assert fuse_rope_attention(module.graph) == 1
    module.graph.lint()
    views = ["aten.view"] * 3
    assert operators(module) == [*views, form, "aten.view", "aten.mul.Tensor"]
    expected, actual = refs(), refs()
    torch.testing.assert_close(interpret(module, actual), before)
    interpret(trace(FORMS[form], refs()), expected)
    for cache in ("kv:0.k", "kv:0.v"):
        assert actual[cache].any()
        torch.testing.assert_close(actual[cache], expected[cache])


def test_a_norm_after_the_rotation_stays_behind_it() -> None:
    module = trace(both(lambda x, given, name: normed(rotate(x, given.cos, given.sin), vars(given)[name])), refs())
    before = interpret(module, refs())
    assert fuse_rope_attention(module.graph) == 1
    assert "norm_paged_attention" in operators(module)
    assert operators(module).count("aten.cat") == 2
    torch.testing.assert_close(interpret(module, refs()), before)


def turned(x: Tensor, given: SimpleNamespace) -> Tensor:
    return rotate(x, given.cos, given.sin)


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
    "weights for tokens": attention(*[lambda x, given: given.cos[:, :1, None] * (x * inverse(x.pow(2).mean(-1, keepdim=True)))] * 2),
    "another power": attention(*[lambda x, given: given.q_norm * (x * inverse(x.pow(3).mean(-1, keepdim=True)))] * 2),
    "another axis": attention(*[lambda x, given: given.q_norm * (x * inverse(x.pow(2).mean(1, keepdim=True)))] * 2),
}


@pytest.mark.parametrize("case", NOT_ALIKE)
def test_what_is_something_else_stays(case: str) -> None:
    module = trace(NOT_ALIKE[case], refs())
    before = operators(module)
    assert fuse_rope_attention(module.graph) == 0
    assert operators(module) == before


def test_values_that_others_read_stay_for_them() -> None:
    def layer(*inputs: Tensor) -> Tensor:
        out = FORMS["rope_paged_attention"](*inputs)
        q, cos, sin = inputs[0].view(-1, HEADS, DIM), inputs[5], inputs[6]
        return out + rotate(q, cos, sin).flatten(1)

    module = trace(layer, refs())
    before = interpret(module, refs())
    assert fuse_rope_attention(module.graph) == 1
    torch.testing.assert_close(interpret(module, refs()), before)
