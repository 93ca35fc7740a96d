"""Attention over latents: the bits of ordinary attention whose keys and values both are latents, so what is proven of that holds here."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels import ops
from engine.kernels.attention import latent as reference
from engine.kernels.attention.reference import SCALE_BYTES
from engine.kernels.cut_operators import LATENT_ATTENTION

pytestmark = pytest.mark.usefixtures("kernel_library")

ULP = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Shape:
    heads: int = 4
    rank: int = 32
    rope: int = 16
    block_size: int = 16
    dtype: torch.dtype = torch.float32

    @property
    def width(self) -> int:
        return self.rank + self.rope

    @property
    def scale(self) -> float:
        return float(self.width**-0.5)


SHAPES = [
    Shape(),
    Shape(heads=1, rank=16, rope=8),
    Shape(heads=16, rank=512, rope=64, block_size=32),
    Shape(heads=20, rank=256, rope=64, block_size=32, dtype=torch.float16),
    Shape(heads=7, rank=40, rope=6, block_size=48),
    Shape(heads=40, rank=48, rope=16, dtype=torch.bfloat16),
    Shape(heads=5, rank=22, rope=4, dtype=torch.bfloat16, block_size=32),
    Shape(heads=16, rank=64, rope=32, dtype=torch.int8, block_size=32),
    Shape(heads=3, rank=20, rope=10, dtype=torch.int8),
    Shape(heads=9, rank=21, rope=3, dtype=torch.float16),
    Shape(heads=128, rank=16, rope=16, block_size=512),
]


class Step:
    """Tokens of some sequences over a cache full of NaN, whose blocks lie in a shuffled order."""

    def __init__(self, shape: Shape, lengths: list[int], seed: int = 1) -> None:
        self.shape, self.lengths = shape, lengths
        generator = torch.Generator().manual_seed(seed)
        tokens = sum(lengths)
        self.q = torch.randn(tokens, shape.heads, shape.width, generator=generator) * 2
        self.latents = torch.randn(tokens, shape.width, generator=generator)
        counts = [-(-length // shape.block_size) for length in lengths]
        self.blocks = torch.randperm(sum(counts) + 1, generator=generator).to(torch.int32)
        self.tables = list(self.blocks[: sum(counts)].split(counts))

    def cache(self) -> Tensor:
        is_int8 = self.shape.dtype == torch.int8
        row = self.shape.width + SCALE_BYTES * is_int8
        # Bytes of ones only: as a float32 scale, a NaN.
        return torch.full((len(self.blocks), 1, self.shape.block_size, row), -1 if is_int8 else torch.nan, dtype=self.shape.dtype)

    def where(self, spans: list[tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of tokens [begin, end) of each sequence: their numbers among all, and what tells where they lie."""
        firsts = [0, *torch.tensor(self.lengths).cumsum(0).tolist()]
        size = self.shape.block_size
        rows = [torch.arange(first + begin, first + end) for first, (begin, end) in zip(firsts, spans, strict=False)]
        slots = [self.tables[s][torch.arange(*span) // size] * size + torch.arange(*span) % size for s, span in enumerate(spans)]
        table = torch.zeros(len(spans), max(map(len, self.tables)), dtype=torch.int32)
        for sequence, blocks in enumerate(self.tables):
            table[sequence, : len(blocks)] = blocks
        lists = {"cu_seqlens": [0, *torch.tensor([end - begin for begin, end in spans]).cumsum(0).tolist()]}
        found = {name: torch.tensor(values, dtype=torch.int32) for name, values in lists.items()}
        found["seq_lens"] = torch.tensor([end for _, end in spans], dtype=torch.int32)
        return torch.cat(rows), found | {"block_table": table, "slot_mapping": torch.cat(slots).int()}

    def call(self, cache: Tensor, spans: list[tuple[int, int]]) -> dict[str, Any]:
        """The operator's arguments by name."""
        rows, where = self.where(spans)
        q = self.q[rows]
        given = {
            "q": q[..., : self.shape.rank].transpose(0, 1).contiguous(),
            "q_rope": q[..., self.shape.rank :].contiguous(),
            "latents": self.latents[rows],
            "cache": cache,
        }
        return {name: (given | where)[name] for name in LATENT_ATTENTION.tensors} | {"scale": self.shape.scale}

    def run(self, cache: Tensor, spans: list[tuple[int, int]]) -> Tensor:
        """[T, heads, rank]"""
        out: Tensor = torch.ops.engine.latent_attention(*self.call(cache, spans).values())
        return out.transpose(0, 1)

    def ordinary(self, caches: tuple[Tensor, Tensor], spans: list[tuple[int, int]]) -> Tensor:
        """The same by the operator whose keys and values are kept apart."""
        rows, where = self.where(spans)
        latents = self.latents[rows][:, None].contiguous()
        order = ("cu_seqlens", "seq_lens", "block_table", "slot_mapping")
        tensors = (self.q[rows], latents, latents, *caches, *(where[name] for name in order))
        out: Tensor = torch.ops.engine.attention(*tensors, *(None,) * 6, self.shape.scale, 0, 0, 0.0, 0.0, False)
        return out[..., : self.shape.rank]

    @property
    def whole(self) -> list[tuple[int, int]]:
        return [(0, length) for length in self.lengths]


@pytest.mark.parametrize("lengths", [[1], [77], [600], [1, 40, 130, 530]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_those_of_attention_with_keys_for_values(shape: Shape, lengths: list[int]) -> None:
    step = Step(shape, lengths)
    cache, keys, values = step.cache(), step.cache(), step.cache()
    out = step.run(cache, step.whole)
    assert torch.equal(out, step.ordinary((keys, values), step.whole))
    assert torch.equal(cache.view(torch.uint8), keys.view(torch.uint8))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_decoding_and_neighbours_change_nothing(shape: Shape) -> None:
    step = Step(shape, [300, 45])
    expected = step.run(step.cache(), step.whole)
    cache, outs = step.cache(), []
    for begin, end in pairwise([0, 1, 130, 298, 299, 300]):
        outs.append(step.run(cache, [(begin, end), (min(begin, 45), min(end, 45))])[: end - begin])
    assert torch.equal(torch.cat(outs), expected[:300])


@pytest.mark.parametrize("shape", [Shape(heads=16, rank=64), Shape(heads=9, dtype=torch.bfloat16)], ids=str)
@pytest.mark.parametrize("new", [1, 5, 200])
def test_threads_change_nothing(shape: Shape, new: int) -> None:
    step = Step(shape, [1500])
    cache = step.cache()
    step.run(cache, [(0, 1500 - new)])
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(step.run(cache, [(1500 - new, 1500)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_that_of_float32(shape: Shape) -> None:
    step = Step(shape, [90])
    cache = step.cache()
    out = step.run(cache, step.whole).transpose(0, 1)
    call = step.call(cache, step.whole) | {"slot_mapping": torch.full((90,), -1, dtype=torch.int32)}

    def exact(dtype: torch.dtype) -> Tensor:
        return reference.latent_attention(**(call | {name: call[name].to(dtype) for name in ("q", "q_rope")}))

    expected = exact(torch.float64)
    independent = (exact(torch.float32) - expected).abs().max()
    assert (out - expected).abs().max() <= 4 * independent + 4 * ULP * expected.abs().max()


@pytest.mark.parametrize("shape", [Shape(), Shape(heads=6, rank=48, rope=8)], ids=str)
def test_absorbed_is_expanded(shape: Shape) -> None:
    """In float64, where nothing is left but the order of sums."""
    plain, value_dim = 24, 40
    step = Step(shape, [50, 9])
    generator = torch.Generator().manual_seed(2)
    key_up = torch.randn(shape.heads * shape.rank, plain, generator=generator, dtype=torch.float64)
    value_up = torch.randn(shape.heads * value_dim, shape.rank, generator=generator, dtype=torch.float64)
    q = torch.randn(59, shape.heads, plain, generator=generator, dtype=torch.float64)
    rows, where = step.where(step.whole)
    turned, latents = step.q[rows][..., shape.rank :].double(), step.latents[rows].double()
    cache = torch.zeros(len(step.blocks), 1, shape.block_size, shape.width, dtype=torch.float64)
    expanded = reference.expanded_attention(torch.cat((q, turned), 2), latents, key_up, value_up, cache, **where, scale=shape.scale)
    up = torch.einsum("thn,hln->htl", q, key_up.view(shape.heads, shape.rank, plain))
    sums = reference.latent_attention(up, turned, latents, cache, **where, scale=shape.scale)
    absorbed = torch.einsum("htl,hvl->thv", sums, value_up.view(shape.heads, value_dim, shape.rank))
    torch.testing.assert_close(absorbed, expanded, rtol=1e-10, atol=1e-12)
    alone = reference.causal_expanded_attention(torch.cat((q, turned), 2), latents, key_up, value_up, where["cu_seqlens"], shape.scale)
    torch.testing.assert_close(alone, expanded, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_poisoned_token_reaches_only_those_who_see_it(shape: Shape) -> None:
    step = Step(shape, [90, 40])
    expected = step.run(step.cache(), step.whole)
    step.latents[50] = torch.nan
    out = step.run(step.cache(), step.whole)
    assert torch.equal(out[:50], expected[:50])
    assert out[50:90].isnan().all()
    assert torch.equal(out[90:], expected[90:])


def test_padding_tokens_are_zero_and_write_nothing() -> None:
    step = Step(Shape(), [20])
    cache = step.cache()
    call = step.call(cache, step.whole)
    expected = torch.ops.engine.latent_attention(*call.values())
    again = step.cache()
    padded = call | {
        "cache": again,
        "q": torch.cat((call["q"], torch.full((4, 3, 32), torch.nan)), dim=1),
        "q_rope": torch.cat((call["q_rope"], torch.full((3, 4, 16), torch.nan))),
        "latents": torch.cat((call["latents"], torch.full((3, 48), torch.nan))),
        "slot_mapping": torch.cat((call["slot_mapping"], torch.full((3,), -1, dtype=torch.int32))),
    }
    out = torch.ops.engine.latent_attention(*padded.values())
    assert torch.equal(out[:, :20], expected)
    assert not out[:, 20:].any()
    assert torch.equal(again.view(torch.uint8), cache.view(torch.uint8))


def test_the_schema_is_true() -> None:
    ops.register_fakes()
    step = Step(Shape(), [20])
    call = tuple(step.call(step.cache(), step.whole).values())
    torch.library.opcheck(torch.ops.engine.latent_attention, call, test_utils=("test_schema", "test_faketensor"))


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "heads of q_rope": ("q_rope must be", {"q_rope": torch.zeros(20, 3, 16)}),
    "width of latents": ("latents must be", {"latents": torch.zeros(20, 47)}),
    "width of the cache": ("does not fit the cache's rows", {"cache": torch.zeros(3, 1, 16, 44)}),
    "several heads of the cache": ("one latent serves all heads", {"cache": torch.zeros(3, 2, 16, 48)}),
    "type of the cache": ("the cache is float32", {"cache": torch.zeros(3, 1, 16, 48, dtype=torch.float64)}),
    "tokens of slots": ("slot_mapping must have", {"slot_mapping": torch.zeros(19, dtype=torch.int32)}),
    "a slot outside": ("is outside the cache", {"slot_mapping": torch.full((20,), 999, dtype=torch.int32)}),
    "a block outside": ("is outside the cache", {"block_table": torch.full((1, 2), 9, dtype=torch.int32)}),
    "a longer sequence than its table": ("longer than its block table", {"seq_lens": torch.tensor([99], dtype=torch.int32)}),
}


@pytest.mark.parametrize(("message", "change"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(message: str, change: dict[str, Any]) -> None:
    step = Step(Shape(), [20])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.engine.latent_attention(*(step.call(step.cache(), step.whole) | change).values())
