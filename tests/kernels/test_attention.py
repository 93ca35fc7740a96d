"""The attention operator: right against float64, and the same row whatever it is computed together with."""

import itertools
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels import ops
from engine.kernels.attention import reference
from engine.kernels.attention.op import attention
from engine.kernels.attention.options import AttentionOptions
from engine.kernels.cut_operators import ATTENTION

pytestmark = pytest.mark.usefixtures("kernel_library")

EPS = 1e-5
ULP = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Heads:
    query: int = 6
    key: int = 2
    dim: int = 32
    value_dim: int | None = None
    block_size: int = 16
    window: int = 0
    chunk: int = 0
    dtype: torch.dtype = torch.float32
    norm: bool = False
    rope: bool = False
    rotary: int | None = None
    norm_after_rope: bool = False
    softcap: float = 0.0
    with_sinks: bool = False
    with_q_scale: bool = False

    @property
    def options(self) -> AttentionOptions:
        return AttentionOptions(
            scale=float(self.dim**-0.5),
            window=self.window,
            chunk=self.chunk,
            softcap=self.softcap,
            eps=EPS * self.norm,
            norm_after_rope=self.norm_after_rope,
        )

    def optional(self, positions: Tensor) -> dict[str, Tensor]:
        """What tokens at `positions` bring beside queries, keys and values."""
        given: dict[str, Tensor] = {}
        if self.norm:
            generator = torch.Generator().manual_seed(self.dim)
            given |= {name: torch.randn(self.dim, generator=generator) for name in ("q_norm", "k_norm")}
        if self.rope:
            given["cos"], given["sin"] = self.angles(positions)
        if self.with_sinks:  # from next to nothing to as much as many keys together
            given["sinks"] = torch.linspace(-3, 6, self.query)
        if self.with_q_scale:
            given["q_scale"] = 1 + 0.1 * (positions + 1).log()
        return given

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of tokens at `positions`."""
        frequencies = 100.0 ** -torch.linspace(0, 1, (self.rotary or self.dim) // 2)
        return (positions[:, None] * frequencies).cos(), (positions[:, None] * frequencies).sin()


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
        k, v = (torch.randn(length, heads.key, dim, generator=generator) for dim in (heads.dim, heads.value_dim or heads.dim))
        return cls(q, k, v)


Piece = tuple[Sequence, int, int]


class Cache:
    """A paged cache full of NaN, whose blocks are handed out in a shuffled order."""

    def __init__(self, heads: Heads, blocks: int) -> None:
        self.heads = heads
        is_int8 = heads.dtype == torch.int8
        row = heads.dim + reference.SCALE_BYTES * is_int8
        # Bytes of ones only: as a float32 scale, a NaN.
        self.k = torch.full((blocks, heads.key, heads.block_size, row), -1 if is_int8 else torch.nan, dtype=heads.dtype)
        self.v = self.k.clone()
        self.free = torch.randperm(blocks, generator=torch.Generator().manual_seed(blocks)).tolist()

    def arguments(self, *pieces: Piece) -> dict[str, Any]:
        """A call for tokens [begin, end) of each sequence, for which blocks are taken: the operator's arguments by name."""
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
        given = {name: torch.cat([getattr(s, name)[begin:end] for s, begin, end in pieces]) for name in "qkv"}
        given |= {"k_cache": self.k, "v_cache": self.v, "block_table": table}
        lists = {"cu_seqlens": starts, "seq_lens": [end for _, _, end in pieces], "slot_mapping": slots}
        given |= {name: torch.tensor(values, dtype=torch.int32) for name, values in lists.items()}
        given |= heads.optional(torch.cat([torch.arange(begin, end) for _, begin, end in pieces]))
        names = (*ATTENTION.tensors, *ATTENTION.optional)
        return {name: given.get(name) for name in names} | dict(zip(ATTENTION.scalars, heads.options.scalars(), strict=True))

    def step(self, *pieces: Piece, oracle: bool = False) -> list[Tensor]:
        """One call for tokens [begin, end) of each sequence: their outputs."""
        call = self.arguments(*pieces)
        out: Tensor = (reference.attention_operator if oracle else torch.ops.engine.attention)(*call.values())
        return list(out.split([end - begin for _, begin, end in pieces]))

    def exact(self, sequence: Sequence, dtype: torch.dtype) -> Tensor:
        """What the whole sequence attends to in this cache as it is, computed in `dtype` without the operator."""
        call = self.arguments((sequence, 0, len(sequence.q)))
        call |= {"q": call["q"].to(dtype), "slot_mapping": torch.full_like(call["slot_mapping"], -1)}
        return reference.attention_operator(*call.values())


def computed(heads: Heads, sequence: Sequence) -> tuple[Tensor, Cache, Sequence]:
    """The sequence computed alone, in one call: outputs, and where it lies."""
    fresh = Sequence(sequence.q, sequence.k, sequence.v)
    cache = Cache(heads, -(-len(fresh.q) // heads.block_size))
    return cache.step((fresh, 0, len(fresh.q)))[0], cache, fresh


def whole(heads: Heads, sequence: Sequence) -> Tensor:
    return computed(heads, sequence)[0]


SHAPES = [
    Heads(),
    Heads(query=1, key=1, dim=16),
    Heads(query=9, key=3, dim=64, rope=True),
    Heads(query=4, key=4, dim=20, block_size=32),
    Heads(query=8, key=1, dim=40, block_size=64, norm=True, rope=True),
    Heads(query=56, key=1, dim=8, norm=True),
    Heads(query=4, key=2, dim=128, block_size=48),
    Heads(query=2, key=1, dim=48, block_size=512),
    Heads(query=6, key=2, dim=32, window=1, rope=True),
    Heads(query=6, key=2, dim=32, window=17),
    Heads(query=9, key=3, dim=64, window=100, block_size=32),
    Heads(query=6, key=2, dim=20, window=700, norm=True),
    Heads(query=14, key=2, dim=14, norm=True, rope=True),
    Heads(dtype=torch.bfloat16),
    Heads(query=9, key=3, dim=20, dtype=torch.bfloat16, window=70, rope=True),
    Heads(dtype=torch.float16),
    Heads(query=9, key=3, dim=64, block_size=32, dtype=torch.float16, rope=True),
    Heads(query=14, key=2, dim=15, dtype=torch.float16, window=70, norm=True, softcap=2.0, with_sinks=True),
    Heads(query=8, key=1, dim=44, block_size=48, dtype=torch.float16, chunk=130, rope=True, rotary=20),
    Heads(query=9, key=3, dim=64, block_size=32, dtype=torch.int8, rope=True),
    Heads(query=4, key=4, dim=80, dtype=torch.int8, window=140),
    Heads(query=10, key=2, dim=18, dtype=torch.int8, norm=True, rope=True),
    Heads(query=9, key=3, dim=64, rope=True, softcap=4.0),
    Heads(query=14, key=2, dim=20, window=33, softcap=1.5, with_sinks=True),
    Heads(query=9, key=3, dim=64, dtype=torch.bfloat16, norm=True, rope=True, softcap=2.0, with_sinks=True),
    Heads(query=10, key=2, dim=48, block_size=48, dtype=torch.int8, window=200, softcap=3.0, with_sinks=True),
    Heads(query=9, key=3, dim=64, rope=True, rotary=16),
    Heads(query=4, key=2, dim=80, rope=True, rotary=30, norm=True, dtype=torch.bfloat16),
    Heads(query=6, key=2, dim=15, rope=True, rotary=14),
    Heads(query=9, key=3, dim=64, norm=True, rope=True, norm_after_rope=True),
    Heads(query=8, key=1, dim=40, norm=True, rope=True, rotary=20, norm_after_rope=True, with_q_scale=True, dtype=torch.int8),
    Heads(with_q_scale=True, chunk=40),
    Heads(query=14, key=2, dim=14, chunk=64, rope=True),
    Heads(query=9, key=3, dim=64, chunk=1, dtype=torch.bfloat16),
    Heads(query=4, key=2, dim=32, chunk=130, window=70, softcap=3.0, with_sinks=True, dtype=torch.bfloat16),
    Heads(query=2, key=1, dim=512, rope=True, rotary=128, norm=True),
    # Values narrower than keys: whole panels, less than the keys' last one, and one panel less.
    Heads(query=4, key=2, dim=48, value_dim=32, rope=True, rotary=16, with_sinks=True, window=70),
    Heads(query=9, key=3, dim=32, value_dim=24, dtype=torch.bfloat16, block_size=32),
    Heads(query=4, key=2, dim=48, value_dim=16, dtype=torch.bfloat16, norm=True),
    Heads(query=8, key=1, dim=40, value_dim=15, dtype=torch.float16, softcap=2.0),
    Heads(query=4, key=4, dim=44, value_dim=21, dtype=torch.int8, chunk=130),
    Heads(query=4, key=2, dim=192, value_dim=128, dtype=torch.int8, rope=True, rotary=64),
]


@pytest.mark.parametrize("length", [1, 16, 77, 600])
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_error_is_that_of_float32(heads: Heads, length: int) -> None:
    out, cache, sequence = computed(heads, Sequence.random(heads, length, seed=length))
    expected = cache.exact(sequence, torch.float64)
    error = (out - expected).abs().max()
    independent = (cache.exact(sequence, torch.float32) - expected).abs().max()
    assert error <= 4 * independent + 4 * ULP * expected.abs().max()


@pytest.mark.parametrize("heads", [heads for heads in SHAPES if not heads.norm], ids=str)
def test_the_cache_holds_what_the_reference_writes(heads: Heads) -> None:
    _, cache, sequence = computed(heads, Sequence.random(heads, 50, seed=1))
    expected = Cache(heads, len(cache.k))
    expected.step((Sequence(sequence.q, sequence.k, sequence.v), 0, 50), oracle=True)
    for ours, theirs in ((cache.k, expected.k), (cache.v, expected.v)):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("rope", [False, True])
def test_normalized_keys_differ_by_the_order_of_a_sum(rope: bool) -> None:
    heads = Heads(dim=64, norm=True, rope=rope)
    _, cache, sequence = computed(heads, Sequence.random(heads, 50, seed=1))
    keys, _ = reference.read_cache(cache.k, cache.v, torch.tensor(sequence.blocks), 50, heads.dim)
    given = heads.optional(torch.arange(50))
    largest = reference.rms_norm(sequence.k.double(), given["k_norm"], EPS).abs().max()
    expected = reference.prepared(sequence.k.double(), given["k_norm"], given.get("cos"), given.get("sin"), heads.options)
    # The sum of squares is off by at most dim roundings, its root by half of them; a rotation adds two such numbers.
    assert (keys - expected).abs().max() <= 2 * (heads.dim / 2 + 8) * ULP * largest


def test_int8_keys_and_values_are_off_by_half_a_step() -> None:
    heads = Heads(query=3, key=1, dim=64, dtype=torch.int8)
    given = Sequence.random(heads, 50, seed=1)
    given.k[7] = 0.0
    given.v[8] = 1e-40
    _, cache, sequence = computed(heads, given)
    keys, values = reference.read_cache(cache.k, cache.v, torch.tensor(sequence.blocks), 50, heads.dim)
    for ours, exact in ((keys, given.k), (values, given.v)):
        step = exact.abs().amax(-1, keepdim=True) / 127
        assert bool(((ours - exact).abs() <= 0.5 * step * (1 + 2.0**-16) + reference.SMALLEST_AMAX).all())
    assert not keys[7].any()
    assert not values[8].any()


def numbers_around_those_of_float16() -> Tensor:
    """Every finite float16, the middles between two, what is next to those, and numbers below and beyond all; 960 times some number."""
    half = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).float()
    middles = (half[1:] + half[:-1]) / 2
    bits = torch.cat((half, middles)).view(torch.int32)
    small = torch.tensor([0.0, 1e-45, 1e-40, 2.0**-126, 2.0**-25, 65519.0, 65520.0, 65536.0, 1e9, torch.finfo(torch.float32).max])
    numbers = torch.cat((small, *((bits + step).view(torch.float32) for step in (-1, 0, 1))))
    numbers = numbers[numbers.isfinite()]
    numbers = torch.cat((numbers, -numbers))
    return torch.cat((numbers, torch.ones(-len(numbers) % 960)))


@pytest.mark.parametrize("dim", [60, 64])
def test_float16_keys_and_values_are_rounded_once_and_stay_finite(dim: int) -> None:
    """In whole vectors and in what is left of a head."""
    numbers = numbers_around_those_of_float16().view(-1, 1, dim)
    heads = Heads(query=1, key=1, dim=dim, dtype=torch.float16)
    _, cache, sequence = computed(heads, Sequence(torch.zeros_like(numbers), numbers, numbers.flip(0)))
    keys, values = reference.read_cache(cache.k, cache.v, torch.tensor(sequence.blocks), len(numbers), dim)
    limited = numbers.clamp(-65504, 65504).half()
    assert torch.equal(keys.view(torch.int16), limited.view(torch.int16))
    assert torch.equal(values.view(torch.int16), limited.flip(0).view(torch.int16))


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("element", [3, 17])
def test_float16_hides_no_number_that_is_not_finite(number: float, element: int) -> None:
    heads = Heads(query=1, key=1, dim=20, dtype=torch.float16)
    given = Sequence.random(heads, 3, seed=1)
    given.k[1, 0, element] = given.v[1, 0, element] = number
    _, cache, sequence = computed(heads, given)
    keys, values = reference.read_cache(cache.k, cache.v, torch.tensor(sequence.blocks), 3, heads.dim)
    for found in (keys, values):
        torch.testing.assert_close(found[1, 0, element], torch.tensor(number).half(), equal_nan=True, rtol=0, atol=0)
        assert int(found.isfinite().logical_not().sum()) == 1


def test_a_key_beyond_float16_takes_all_and_no_other_result_is_lost() -> None:
    heads = Heads(query=1, key=1, dim=16, dtype=torch.float16)
    sequence = Sequence.random(heads, 8, seed=1)
    sequence.q[:] = 1.0
    sequence.k[3] = 1e6
    out = whole(heads, sequence)
    assert torch.equal(out[3:], sequence.v[3].half().float().expand(5, 1, 16))
    assert torch.equal(out[:3], whole(heads, Sequence(sequence.q[:3], sequence.k[:3], sequence.v[:3])))


@settings(max_examples=40, deadline=None)
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


@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_decoding_token_by_token_changes_nothing(heads: Heads) -> None:
    sequence = Sequence.random(heads, 140, seed=3)
    cache = Cache(heads, 10)
    parts = [cache.step((sequence, position, position + 1))[0] for position in range(140)]
    assert torch.equal(torch.cat(parts), whole(heads, sequence))


@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_decoding_together_changes_nothing(heads: Heads) -> None:
    """A step of single tokens, and a sequence that has none in it."""
    lengths = [1, 600, 64, 65, 300]
    sequences = [Sequence.random(heads, length, seed=length) for length in lengths]
    cache = Cache(heads, sum(-(-length // heads.block_size) for length in lengths))
    cache.step(*((sequence, 0, length - 1) for sequence, length in zip(sequences, lengths, strict=True)))
    last = [(sequence, length - (length != 300), length) for sequence, length in zip(sequences, lengths, strict=True)]
    last[4] = (sequences[4], 299, 299)
    outs = cache.step(*last)
    assert [len(out) for out in outs] == [1, 1, 1, 1, 0]
    for out, sequence in zip(outs[:4], sequences, strict=False):
        assert torch.equal(out, whole(heads, sequence)[-1:])


@pytest.mark.parametrize(
    "heads",
    [
        Heads(query=9, key=3, dim=64, rope=True),
        Heads(dim=20, window=600),
        Heads(query=8, key=1, dim=64, dtype=torch.int8, softcap=2.0, with_sinks=True),
        Heads(query=9, key=3, dim=64, dtype=torch.float16, rope=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("new", [1, 5, 200])
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
    reach = min(90, 50 + heads.window if heads.window else 90, 50 // heads.chunk * heads.chunk + heads.chunk if heads.chunk else 90)
    assert out[50:reach].isnan().all()
    assert torch.equal(out[reach:], expected[reach:])


def test_padding_tokens_are_zero_and_write_nothing() -> None:
    heads = Heads(with_sinks=True)
    sequence = Sequence.random(heads, 20, seed=7)
    cache = Cache(heads, 4)
    q, k, v = (torch.cat((part, torch.full((3, *part.shape[1:]), torch.nan))) for part in (sequence.q, sequence.k, sequence.v))
    slots = torch.tensor([*range(16, 36), -1, -1, -1], dtype=torch.int32)
    table = torch.tensor([[1, 2]], dtype=torch.int32)
    start, length = torch.tensor([0, 20], dtype=torch.int32), torch.tensor([20], dtype=torch.int32)
    sinks = heads.optional(torch.arange(23))["sinks"]
    out = attention(q, k, v, cache.k, cache.v, start, length, table, slots, heads.options, sinks=sinks)
    assert torch.equal(out[:20], whole(heads, sequence))
    assert not out[20:].any()
    assert cache.v[0].isnan().all()
    assert cache.v[3].isnan().all()


@pytest.mark.parametrize("heads", [Heads(query=4, key=2, dim=16), Heads(query=4, key=2, dim=16, norm=True, rope=True)], ids=str)
def test_inputs_may_be_slices_of_one_projection(heads: Heads) -> None:
    sequence = Sequence.random(heads, 30, seed=8)
    call = Cache(heads, 2).arguments((sequence, 0, 30))
    merged = torch.cat([call[name].flatten(1) for name in "qkv"], dim=1)
    slices = [part.unflatten(1, (-1, 16)) for part in merged.split((64, 32, 32), dim=1)]
    out = torch.ops.engine.attention(**(call | dict(zip("qkv", slices, strict=True))))
    assert torch.equal(out, whole(heads, sequence))


FORMS = [Heads(norm=norm, rope=rope) for norm in (False, True) for rope in (False, True)]


@pytest.mark.parametrize("heads", FORMS, ids=str)
def test_the_schema_is_true(heads: Heads) -> None:
    ops.register_fakes()
    heads = replace(heads, dim=64, value_dim=48 if heads.rope else 64, with_sinks=heads.rope, softcap=4.0 * heads.norm)
    call = Cache(heads, 3).arguments((Sequence.random(heads, 20, seed=10), 0, 20))
    torch.library.opcheck(torch.ops.engine.attention, tuple(call.values()), test_utils=("test_schema", "test_faketensor"))


def test_extreme_scores_are_finite() -> None:
    heads = Heads(query=2, key=1, dim=16)
    sequence = Sequence.random(heads, 100, seed=9)
    sequence.q *= 1e4
    sequence.k[::3] *= 1e3
    out = whole(heads, sequence)
    assert out.isfinite().all()
    _, cache, fresh = computed(heads, sequence)
    torch.testing.assert_close(out, cache.exact(fresh, torch.float64).float())


def uniform_step(length: int, *, scores: float, softcap: float = 0.0, sinks: Tensor | None = None) -> Tensor:
    """What the last of `length` tokens gets where every score is `scores` and every value 1. [QH]"""
    heads = Heads(query=4, key=2, dim=16)
    sequence = Sequence(torch.ones(length, 4, 16), torch.full((length, 2, 16), scores / 16), torch.ones(length, 2, 16))
    call = Cache(heads, -(-length // 16)).arguments((sequence, 0, length))
    out: Tensor = torch.ops.engine.attention(**call | {"sinks": sinks, "scale": 1.0, "softcap": softcap})
    assert torch.equal(out[-1], out[-1, :, :1].expand(-1, 16))
    return out[-1, :, 0]


@pytest.mark.parametrize("length", [1, 100, 3000])
def test_a_sink_takes_its_share_once(length: int) -> None:
    """Of `length` equal keys and a sink that is worth as much as all of them, or three times that."""
    sinks = math.log(length) + 2.0 + torch.tensor([1.0, 3.0, 0.0, 1e-30]).log()
    torch.testing.assert_close(uniform_step(length, scores=2.0, sinks=sinks), torch.tensor([0.5, 0.25, 1.0, 1.0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scores", [2.0, -300.0])
def test_a_sink_that_is_out_of_reach_takes_all_or_nothing(scores: float) -> None:
    sinks = torch.tensor([1e30, 200.0, -1e30, -torch.inf])
    assert torch.equal(uniform_step(100, scores=scores, sinks=sinks), torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_the_soft_cap_does_not_cap_the_sink() -> None:
    """Scores of 3 become 2 * tanh(3 / 2)."""
    share = 1 / (1 + torch.tensor([0.0, 3.0, 50.0, 1.0]).sub(2 * math.tanh(1.5)).exp())
    torch.testing.assert_close(uniform_step(1, scores=3.0, softcap=2.0, sinks=torch.tensor([0.0, 3.0, 50.0, 1.0])), share)


@pytest.mark.parametrize("cap", [0.5, 30.0, 50.0])
def test_the_soft_cap_is_exact_to_float32(cap: float) -> None:
    """Scores from the smallest to far beyond the cap, each seen in the share of a key beside a sink of 0."""
    scores = torch.cat((torch.logspace(-30, 3, 399), torch.tensor([1e30]))) * cap
    heads = Heads(query=2, key=1, dim=8)
    sequence = Sequence(torch.zeros(400, 2, 8), torch.ones(400, 1, 8), torch.ones(400, 1, 8))
    sequence.q[:, :, 0] = torch.stack((scores, -scores), dim=1)
    call = Cache(heads, 25).arguments((sequence, 0, 400))
    share = torch.ops.engine.attention(**call | {"sinks": torch.zeros(2), "scale": 1.0, "window": 1, "softcap": cap})[:, :, 0]
    capped = cap * (sequence.q[:, :, 0].double() / cap).tanh()
    # An error of a score is one of the share, relatively; float32 has the score itself with half an ULP, and takes a few steps.
    assert ((share / capped.sigmoid() - 1).abs() <= 4 * ULP * (1 + 2 * capped.abs())).all()


def valid_call(heads: Heads) -> dict[str, Any]:
    """The arguments of a call by name."""
    return Cache(heads, 3).arguments((Sequence.random(heads, 20, seed=10), 0, 20))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("q", torch.randn(20, 6, 16), "head size 16 does not fit"),
        ("q", torch.randn(20, 5, 32), "5 query heads cannot share 2"),
        ("q", torch.randn(20, 6, 32).double(), "q has the wrong dtype"),
        ("q", torch.randn(20, 32, 6).transpose(1, 2), "contiguous within a row"),
        ("k", torch.randn(19, 2, 32), "k and v must be"),
        ("v", torch.randn(20, 1, 32), "k and v must be"),
        ("v", torch.randn(20, 2, 33), "values of 33 elements are wider than keys of 32"),
        ("k_cache", torch.randn(3, 2, 8, 32), "block size 8"),
        ("v_cache", torch.randn(2, 2, 16, 32), "differ in shape"),
        ("v_cache", torch.randn(3, 2, 16, 32).bfloat16(), "v_cache has the wrong dtype"),
        ("cu_seqlens", torch.tensor([0, 21], dtype=torch.int32), "does not fit the tokens"),
        ("cu_seqlens", torch.tensor([0, 10, 20], dtype=torch.int32), "do not fit block_table"),
        ("seq_lens", torch.tensor([19], dtype=torch.int32), "shorter than its new tokens"),
        ("seq_lens", torch.tensor([33], dtype=torch.int32), "longer than its block table"),
        ("seq_lens", torch.tensor([20]), "seq_lens has the wrong dtype"),
        ("slot_mapping", torch.arange(29, 49, dtype=torch.int32), "outside the cache"),
        ("slot_mapping", torch.arange(19, dtype=torch.int32), "one element per token"),
        ("block_table", torch.tensor([0, 1], dtype=torch.int32), "block_table must have 2 dimensions"),
        ("block_table", torch.tensor([[0, 3]], dtype=torch.int32), "outside the cache"),
        ("sinks", torch.zeros(5), "sinks has 5 elements for 6 query heads"),
        ("sinks", torch.zeros(6).double(), "sinks has the wrong dtype"),
        ("sinks", torch.zeros(12)[::2], "sinks must be contiguous"),
    ],
)
def test_wrong_calls_are_errors(name: str, wrong: Tensor, message: str) -> None:
    call = valid_call(Heads())
    assert torch.ops.engine.attention(**call).shape == (20, 6, 32)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.engine.attention(**call | {name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("q_norm", torch.ones(31), "q_norm has 31 elements for 32 elements of a head"),
        ("k_norm", torch.ones(32).double(), "wrong dtype"),
        ("k_norm", None, "q_norm and k_norm go together"),
        ("cos", torch.ones(20, 32), "cos and sin do not fit"),
        ("sin", torch.ones(19, 16), "cos and sin do not fit"),
        ("sin", torch.ones(16, 20).T, "contiguous"),
        ("sin", None, "cos and sin go together"),
        ("q_scale", torch.ones(19), "q_scale has 19 elements for 20 tokens"),
        ("k_cache", torch.zeros(3, 2, 16, 32, dtype=torch.int8), "rows of 32"),
        ("k_cache", torch.zeros(3, 2, 16, 32).double(), "float32, float16, bfloat16 or int8"),
    ],
)
def test_wrong_optional_tensors_are_errors(name: str, wrong: Tensor | None, message: str) -> None:
    call = valid_call(Heads(norm=True, rope=True, with_q_scale=True))
    if name == "k_cache":
        call["v_cache"] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.engine.attention(**call | {name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("window", -1, "window"),
        ("chunk", -1, "chunk"),
        ("softcap", -1.0, "soft cap"),
        ("softcap", math.inf, "soft cap"),
        ("softcap", math.nan, "soft cap"),
        ("eps", EPS, "eps"),
        ("norm_after_rope", True, "norm_after_rope"),
    ],
)
def test_wrong_numbers_are_errors(name: str, wrong: float, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.engine.attention(**valid_call(Heads()) | {name: wrong})


def test_options_are_the_scalars_of_the_schema() -> None:
    """Every one has a place, and comes back from there."""
    options = AttentionOptions(scale=1.5, window=2, chunk=3, softcap=4.5, eps=5.5, norm_after_rope=True)
    by_name = dict(zip(ATTENTION.scalars, options.scalars(), strict=True))
    assert by_name == asdict(options)
    assert AttentionOptions.take(by_name) == options
    assert [argument.name for argument in torch.ops.engine.attention.default._schema.arguments] == list(valid_call(Heads()))
