"""paged_attention: right against float64, and the same row whatever it is computed together with."""

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels.attention import paged_attention, reference

pytestmark = pytest.mark.usefixtures("kernel_library")


@dataclass(frozen=True, kw_only=True)
class Heads:
    query: int = 6
    key: int = 2
    dim: int = 32
    block_size: int = 16
    window: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def scale(self) -> float:
        return float(self.dim**-0.5)


@dataclass
class Sequence:
    """Queries, keys and values of a whole sequence; its tokens are fed to the operator in pieces."""

    q: Tensor
    k: Tensor
    v: Tensor
    blocks: list[int] = field(default_factory=list)

    @classmethod
    def random(cls, heads: Heads, length: int, seed: int) -> "Sequence":
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(length, heads.query, heads.dim, generator=generator) * 2
        k, v = (torch.randn(length, heads.key, heads.dim, generator=generator) for _ in range(2))
        return cls(q, k, v)


class Cache:
    """A paged cache full of NaN, whose blocks are handed out in a shuffled order."""

    def __init__(self, heads: Heads, blocks: int) -> None:
        self.heads = heads
        self.k = torch.full((blocks, heads.key, heads.block_size, heads.dim), torch.nan, dtype=heads.dtype)
        self.v = self.k.clone()
        self.free = torch.randperm(blocks, generator=torch.Generator().manual_seed(blocks)).tolist()

    def step(self, *pieces: tuple[Sequence, int, int], oracle: bool = False) -> list[Tensor]:
        """One call for tokens [begin, end) of each sequence: their outputs."""
        heads, size = self.heads, self.heads.block_size
        starts, slots = [0], []
        for sequence, begin, end in pieces:
            while len(sequence.blocks) * size < end:
                sequence.blocks.append(self.free.pop())
            starts.append(starts[-1] + end - begin)
            slots += [sequence.blocks[p // size] * size + p % size for p in range(begin, end)]
        table = torch.zeros(len(pieces), max(len(s.blocks) for s, _, _ in pieces), dtype=torch.int32)
        for row, (sequence, _, _) in enumerate(pieces):
            table[row, : len(sequence.blocks)] = torch.tensor(sequence.blocks)
        q, k, v = (torch.cat([getattr(s, name)[begin:end] for s, begin, end in pieces]) for name in "qkv")
        lengths = torch.tensor([end for _, _, end in pieces], dtype=torch.int32)
        start, slot = torch.tensor(starts, dtype=torch.int32), torch.tensor(slots, dtype=torch.int32)
        function = reference.paged_attention if oracle else paged_attention
        out = function(q, k, v, self.k, self.v, start, lengths, table, slot, heads.scale, heads.window)
        return [out[a:b] for a, b in itertools.pairwise(starts)]


def whole(heads: Heads, sequence: Sequence) -> Tensor:
    """The sequence computed alone, in one call."""
    fresh = Sequence(sequence.q, sequence.k, sequence.v)
    length = len(fresh.q)
    return Cache(heads, -(-length // heads.block_size)).step((fresh, 0, length))[0]


def exact(heads: Heads, sequence: Sequence, dtype: torch.dtype) -> Tensor:
    """The reference on the same rounded keys and values, computed in `dtype`."""
    fresh = Sequence(sequence.q.to(dtype), sequence.k, sequence.v)
    length = len(fresh.q)
    return Cache(heads, -(-length // heads.block_size)).step((fresh, 0, length), oracle=True)[0]


SHAPES = [
    Heads(),
    Heads(query=1, key=1, dim=16),
    Heads(query=9, key=3, dim=64),
    Heads(query=4, key=4, dim=20, block_size=32),
    Heads(query=8, key=1, dim=40, block_size=64),
    Heads(query=40, key=1, dim=8),
    Heads(query=4, key=2, dim=128, block_size=48),
    Heads(query=2, key=1, dim=48, block_size=512),
    Heads(query=6, key=2, dim=32, window=1),
    Heads(query=6, key=2, dim=32, window=17),
    Heads(query=9, key=3, dim=64, window=100, block_size=32),
    Heads(query=6, key=2, dim=20, window=700),
    Heads(dtype=torch.bfloat16),
    Heads(query=9, key=3, dim=20, dtype=torch.bfloat16, window=70),
]


@pytest.mark.parametrize("length", [1, 16, 77, 600])
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_error_is_that_of_float32(heads: Heads, length: int) -> None:
    sequence = Sequence.random(heads, length, seed=length)
    expected = exact(heads, sequence, torch.float64)
    error = (whole(heads, sequence) - expected).abs().max()
    independent = (exact(heads, sequence, torch.float32) - expected).abs().max()
    assert error <= 4 * independent + 4 * 2.0**-24 * expected.abs().max()


@pytest.mark.parametrize("heads", [Heads(), Heads(dim=20, dtype=torch.bfloat16, block_size=32)], ids=str)
def test_the_cache_holds_what_was_written(heads: Heads) -> None:
    sequence = Sequence.random(heads, 50, seed=1)
    cache, expected = Cache(heads, 6), Cache(heads, 6)
    cache.step((sequence, 0, 50))
    expected.step((Sequence(sequence.q, sequence.k, sequence.v), 0, 50), oracle=True)
    assert torch.equal(cache.k.nan_to_num(7), expected.k.nan_to_num(7))
    assert torch.equal(cache.v.nan_to_num(7), expected.v.nan_to_num(7))
    keys, values = reference.read_cache(cache.k, cache.v, torch.tensor(sequence.blocks), 50)
    assert torch.equal(keys, sequence.k.to(heads.dtype))
    assert torch.equal(values, sequence.v.to(heads.dtype))


@settings(max_examples=25, deadline=None)
@given(
    heads=st.sampled_from(SHAPES),
    cuts=st.sets(st.integers(1, 1299), max_size=6),
    length=st.sampled_from([1, 15, 64, 65, 513, 1300]),
)
def test_chunks_change_nothing(heads: Heads, cuts: set[int], length: int) -> None:
    sequence = Sequence.random(heads, length, seed=2)
    expected = whole(heads, sequence)
    edges = [0, *sorted(cut for cut in cuts if cut < length), length]
    cache = Cache(heads, -(-length // heads.block_size))
    parts = [cache.step((sequence, begin, end))[0] for begin, end in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_neighbours_change_nothing(heads: Heads) -> None:
    lengths = [1, 40, 130, 530, 1100]
    sequences = [Sequence.random(heads, length, seed=length) for length in lengths]
    expected = [whole(heads, sequence) for sequence in sequences]
    cache = Cache(heads, sum(-(-length // heads.block_size) for length in lengths) + 1)
    before = [0, 30, 129, 0, 1099]
    earlier = [(sequence, 0, begin) for sequence, begin in zip(sequences, before, strict=True) if begin]
    cache.step(*earlier)
    steps = [(sequence, begin, length) for sequence, begin, length in zip(sequences, before, lengths, strict=True)]
    for out, begin, alone in zip(cache.step(*steps), before, expected, strict=True):
        assert torch.equal(out, alone[begin:])


@pytest.mark.parametrize("heads", [Heads(), Heads(query=9, key=3, dim=64)], ids=str)
def test_decoding_token_by_token_changes_nothing(heads: Heads) -> None:
    sequence = Sequence.random(heads, 140, seed=3)
    cache = Cache(heads, 10)
    parts = [cache.step((sequence, position, position + 1))[0] for position in range(140)]
    assert torch.equal(torch.cat(parts), whole(heads, sequence))


@pytest.mark.parametrize("heads", [Heads(query=9, key=3, dim=64), Heads(dim=20, window=600)], ids=str)
@pytest.mark.parametrize("new", [1, 200])
def test_threads_change_nothing(heads: Heads, new: int) -> None:
    sequence = Sequence.random(heads, 1500, seed=4)
    cache = Cache(heads, 100)
    cache.step((sequence, 0, 1500 - new))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(cache.step((sequence, 1500 - new, 1500))[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_a_poisoned_token_reaches_only_those_who_see_it(heads: Heads) -> None:
    """Sequences share the call, and earlier tokens share every tile, with a token of NaN."""
    clean = Sequence.random(heads, 90, seed=5)
    other = Sequence.random(heads, 90, seed=6)
    poisoned = Sequence(clean.q.clone(), clean.k.clone(), clean.v.clone())
    poisoned.q[50] = poisoned.k[50] = poisoned.v[50] = torch.nan
    expected, alone = whole(heads, clean), whole(heads, other)
    out, beside = Cache(heads, 20).step((poisoned, 0, 90), (other, 0, 90))
    assert torch.equal(beside, alone)
    assert torch.equal(out[:50], expected[:50])
    reach = min(90, 50 + heads.window) if heads.window else 90
    assert out[50:reach].isnan().all()
    assert torch.equal(out[reach:], expected[reach:])


def test_padding_tokens_are_zero_and_write_nothing() -> None:
    heads = Heads()
    sequence = Sequence.random(heads, 20, seed=7)
    cache = Cache(heads, 4)
    q, k, v = (torch.cat((part, torch.full((3, *part.shape[1:]), torch.nan))) for part in (sequence.q, sequence.k, sequence.v))
    slots = torch.tensor([*range(16, 36), -1, -1, -1], dtype=torch.int32)
    table = torch.tensor([[1, 2]], dtype=torch.int32)
    start, length = torch.tensor([0, 20], dtype=torch.int32), torch.tensor([20], dtype=torch.int32)
    out = paged_attention(q, k, v, cache.k, cache.v, start, length, table, slots, heads.scale, 0)
    assert torch.equal(out[:20], whole(heads, sequence))
    assert not out[20:].any()
    assert cache.v[0].isnan().all()
    assert cache.v[3].isnan().all()


def test_inputs_may_be_slices_of_one_projection() -> None:
    heads = Heads(query=4, key=2, dim=16)
    sequence = Sequence.random(heads, 30, seed=8)
    merged = torch.cat([part.flatten(1) for part in (sequence.q, sequence.k, sequence.v)], dim=1)
    q, k, v = merged.split((64, 32, 32), dim=1)
    sliced = Sequence(q.unflatten(1, (4, 16)), k.unflatten(1, (2, 16)), v.unflatten(1, (2, 16)))
    cache = Cache(heads, 2)
    table, slots = torch.tensor([[0, 1]], dtype=torch.int32), torch.arange(30, dtype=torch.int32)
    start, length = torch.tensor([0, 30], dtype=torch.int32), torch.tensor([30], dtype=torch.int32)
    out = paged_attention(sliced.q, sliced.k, sliced.v, cache.k, cache.v, start, length, table, slots, heads.scale, 0)
    assert torch.equal(out, whole(heads, sequence))


def test_extreme_scores_are_finite() -> None:
    heads = Heads(query=2, key=1, dim=16)
    sequence = Sequence.random(heads, 100, seed=9)
    sequence.q *= 1e4
    sequence.k[::3] *= 1e3
    out = whole(heads, sequence)
    assert out.isfinite().all()
    torch.testing.assert_close(out, exact(heads, sequence, torch.float64).float())


def valid_call(heads: Heads) -> dict[str, Tensor]:
    cache = Cache(heads, 3)
    sequence = Sequence.random(heads, 20, seed=10)
    return {
        "q": sequence.q,
        "k": sequence.k,
        "v": sequence.v,
        "k_cache": cache.k,
        "v_cache": cache.v,
        "query_start": torch.tensor([0, 20], dtype=torch.int32),
        "seq_lens": torch.tensor([20], dtype=torch.int32),
        "block_table": torch.tensor([[0, 1]], dtype=torch.int32),
        "slots": torch.arange(20, dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("q", torch.randn(20, 6, 16), "head size 16 does not fit"),
        ("q", torch.randn(20, 5, 32), "5 query heads cannot share 2"),
        ("q", torch.randn(20, 6, 32).double(), "q has the wrong dtype"),
        ("q", torch.randn(20, 32, 6).transpose(1, 2), "contiguous within a row"),
        ("k", torch.randn(19, 2, 32), "k and v must be"),
        ("k_cache", torch.randn(3, 2, 8, 32), "block size 8"),
        ("v_cache", torch.randn(2, 2, 16, 32), "differ in shape"),
        ("v_cache", torch.randn(3, 2, 16, 32).bfloat16(), "v_cache has the wrong dtype"),
        ("query_start", torch.tensor([0, 21], dtype=torch.int32), "does not fit the tokens"),
        ("query_start", torch.tensor([0, 10, 20], dtype=torch.int32), "do not fit block_table"),
        ("seq_lens", torch.tensor([19], dtype=torch.int32), "shorter than its new tokens"),
        ("seq_lens", torch.tensor([33], dtype=torch.int32), "longer than its block table"),
        ("seq_lens", torch.tensor([20]), "seq_lens has the wrong dtype"),
        ("slots", torch.arange(29, 49, dtype=torch.int32), "outside the cache"),
        ("slots", torch.arange(19, dtype=torch.int32), "one element per token"),
        ("block_table", torch.tensor([0, 1], dtype=torch.int32), "block_table must have 2 dimensions"),
        ("block_table", torch.tensor([[0, 3]], dtype=torch.int32), "outside the cache"),
    ],
)
def test_wrong_calls_are_errors(name: str, wrong: Tensor, message: str) -> None:
    arguments = valid_call(Heads())
    assert paged_attention(**arguments, scale=1.0, window=0).shape == (20, 6, 32)
    with pytest.raises(RuntimeError, match=message):
        paged_attention(**{**arguments, name: wrong}, scale=1.0, window=0)


def test_a_negative_window_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="window"):
        paged_attention(**valid_call(Heads()), scale=1.0, window=-1)
