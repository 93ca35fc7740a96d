"""Attention for NVIDIA, interpreted: shuffled block tables, all that may come before it, groups, windows, chunks and padding."""

from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, interpreter, worst_error

from engine.kernels.attention.options import AttentionOptions
from engine.kernels.cut_operators import ATTENTION
from engine.kernels.nvidia import reference

BLOCK_SIZE = 32
EPS = 1e-5
SMALL = replace(H200, multiprocessors=6)
"""A device on which the keys of a few sequences are split among few programs: every one takes time to interpret."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """lengths: of each sequence, the last `new` tokens of which are new. Padding as in steps that fill a larger bucket.

    rotary: elements of a head that rotate, all if it has fewer; 0 for none.
    """

    lengths: tuple[int, ...]
    new: tuple[int, ...]
    norm: bool = False
    rotary: int = 64
    norm_after_rope: bool = False
    with_q_scale: bool = False
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    with_sinks: bool = False
    padded_sequences: int = 0
    padded_tokens: int = 0

    @property
    def decode(self) -> bool:
        return max(self.new) == 1

    @property
    def options(self) -> AttentionOptions:
        return AttentionOptions(
            scale=self.head_dim**-0.5,
            window=self.window,
            chunk=self.chunk,
            softcap=self.softcap,
            eps=EPS * self.norm,
            norm_after_rope=self.norm_after_rope,
        )


MANY = Step(lengths=tuple(range(1, 8)), new=(1,) * 7, heads=(2, 2), head_dim=16)


Arguments = dict[str, Tensor]
"""Of the operator, by name, those that are there."""


def arguments(step: Step) -> Arguments:
    """Random numbers; what no kernel may use (cache past a sequence's length, free blocks, padded tokens) is NaN."""
    source = torch.Generator().manual_seed(0)
    (query_heads, kv_heads), dim = step.heads, step.head_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).bfloat16()

    sequences, tokens, width = len(step.lengths), sum(step.new), -(-max(step.lengths) // BLOCK_SIZE) + 1
    table = (torch.randperm(sequences * width, generator=source) + 1).view(sequences, width)
    positions = [range(length - new, length) for length, new in zip(step.lengths, step.new, strict=True)]
    slots = [int(table[s, p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE for s, new in enumerate(positions) for p in new]
    caches = tuple(torch.full((sequences * width + 1, kv_heads, BLOCK_SIZE, dim), torch.nan).bfloat16() for _ in range(2))
    for s, new in enumerate(positions):
        old = torch.arange(new.start)
        for cache in caches:
            cache[table[s, old // BLOCK_SIZE], :, old % BLOCK_SIZE] = normal(new.start, kv_heads, dim)
    padded = step.padded_sequences if step.decode else step.padded_tokens
    rows = normal(tokens + padded, (query_heads + 2 * kv_heads) * dim + 8)
    rows[tokens:] = torch.nan
    q, k, v, _ = rows.split((query_heads * dim, kv_heads * dim, kv_heads * dim, 8), dim=1)
    starts = [0, *accumulate(step.new)]
    starts += [starts[-1] + (i + 1 if step.decode else 0) for i in range(step.padded_sequences)]

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    given = {
        "q": q.unflatten(1, (query_heads, dim)),
        "k": k.unflatten(1, (kv_heads, dim)),
        "v": v.unflatten(1, (kv_heads, dim)),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "cu_seqlens": integers(starts),
        "seq_lens": integers([*step.lengths, *[0] * step.padded_sequences]),
        "block_table": torch.cat((table, torch.zeros(step.padded_sequences, width))).int(),
        "slot_mapping": integers([*slots, *[-1] * padded]),
    }
    angles = torch.rand(tokens + padded, min(step.rotary, dim) // 2, generator=source) * 6
    if step.norm:
        given |= {"q_norm": normal(dim).float(), "k_norm": normal(dim).float()}
    if step.rotary:
        given |= {"cos": angles.cos(), "sin": angles.sin()}
    if step.with_sinks:  # from next to nothing to as much as many keys together
        given["sinks"] = torch.linspace(-3, 6, query_heads)
    if step.with_q_scale:
        given["q_scale"] = torch.rand(tokens + padded, generator=source) + 0.5
    return given


SYMBOLIC = {"cu_seqlens": ("S1",), "seq_lens": ("S",), "block_table": ("S", "B"), "slot_mapping": ("T",), "q_scale": ("T",)}


def call(step: Step, given: Arguments) -> Call:
    def describe(name: str) -> Given | None:
        if name not in given:
            return None
        tensor = given[name]
        return Given(tensor, ("T", *tensor.shape[1:]) if name in ("q", "k", "v", "cos", "sin") else SYMBOLIC.get(name))

    return Call(
        operator="attention",
        arguments=(*map(describe, (*ATTENTION.tensors, *ATTENTION.optional)), *step.options.scalars()),
        shape=("T", step.heads[0], step.head_dim),
        dtype="bfloat16",
        dims={
            "T": len(given["q"]),
            "S": len(given["seq_lens"]),
            "S1": len(given["cu_seqlens"]),
            "B": given["block_table"].shape[1],
            "Q": max(step.new),
        },
        device=SMALL,
    )


def run(step: Step, given: Arguments) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The rows of real tokens, and the caches afterwards."""
    out, after = interpreter().run(call(step, given))
    k_cache, v_cache = (x for x in after if isinstance(x, Tensor) and x.dim() == 4)
    return out[: sum(step.new)], (k_cache, v_cache)


def expected(step: Step, given: Arguments, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    tokens = sum(step.new)
    real = {name: x[:tokens] if name in ("q", "k", "v", "cos", "sin", "slot_mapping", "q_scale") else x for name, x in given.items()}
    real |= {"cu_seqlens": given["cu_seqlens"][: len(step.new) + 1], "seq_lens": given["seq_lens"][: len(step.new)]}
    real = {name: x.to(dtype) if x.is_floating_point() and name != "sinks" else x for name, x in real.items()}
    out = reference.attention(options=step.options, **real)
    return out, (real["k_cache"], real["v_cache"])


def typical_error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square."""
    return float((actual.double() - exact).square().mean().sqrt())


def check(step: Step) -> None:
    given = arguments(step)
    actual, caches = run(step, given)
    exact, exact_caches = expected(step, given, torch.float64)
    low, low_caches = expected(step, given, torch.bfloat16)
    assert worst_error(actual, exact) <= 2 * worst_error(low, exact)
    assert typical_error(actual, exact) <= typical_error(low, exact)
    for cache, exact_cache, low_cache in zip(caches, exact_caches, low_caches, strict=True):
        used = exact_cache.isfinite()
        assert torch.equal(cache.isnan(), ~used)
        assert worst_error(cache[used], exact_cache[used]) <= worst_error(low_cache[used], exact_cache[used])


BEFORE = {
    "nothing": {"rotary": 0},
    "rope": {},
    "norm": {"norm": True, "rotary": 0},
    "norm, rope": {"norm": True},
    "rope, norm": {"norm": True, "norm_after_rope": True},
    "partial rope": {"rotary": 16},
    "norm, partial rope": {"norm": True, "rotary": 44},
    "partial rope, norm": {"norm": True, "rotary": 12, "norm_after_rope": True},
    "scale": {"rotary": 0, "with_q_scale": True},
    "norm, rope, scale": {"norm": True, "with_q_scale": True},
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("new", [(1, 1, 1), (17, 1, 40)])
def test_what_comes_before_attention(new: tuple[int, ...], before: str) -> None:
    check(Step(lengths=(40, 150, 70), new=new, padded_sequences=2, padded_tokens=3, **BEFORE[before]))  # type: ignore[arg-type]


@pytest.mark.parametrize(("heads", "head_dim"), [((2, 2), 128), ((6, 2), 80), ((4, 1), 96), ((8, 1), 64), ((16, 1), 16), ((2, 1), 512)])
@pytest.mark.parametrize("new", [(1, 1), (20, 2)])
def test_groups_and_sizes_of_heads(new: tuple[int, ...], heads: tuple[int, int], head_dim: int) -> None:
    check(Step(lengths=(70, 33), new=new, heads=heads, head_dim=head_dim))


@pytest.mark.parametrize("window", [1, 50, 1000])
@pytest.mark.parametrize("new", [(1, 1, 1), (50, 70, 1)])
def test_windows(new: tuple[int, ...], window: int) -> None:
    check(Step(lengths=(300, 70, 1), new=new, window=window, heads=(2, 1)))


@pytest.mark.parametrize(("chunk", "window"), [(1, 0), (64, 0), (100, 30), (1000, 0)])
@pytest.mark.parametrize("new", [(1, 1, 1), (50, 70, 1)])
def test_chunks(new: tuple[int, ...], chunk: int, window: int) -> None:
    check(Step(lengths=(300, 70, 1), new=new, chunk=chunk, window=window, heads=(2, 1), padded_sequences=1))


@pytest.mark.parametrize(("window", "chunk"), [(50, 0), (0, 70)])
@pytest.mark.parametrize("new", [(1, 1), (50, 3)])
def test_blocks_that_a_window_has_left_are_not_read(new: tuple[int, ...], window: int, chunk: int) -> None:
    """Their places in the block table name a block that is NaN."""
    step = Step(lengths=(300, 110), new=new, window=window, chunk=chunk, heads=(2, 1))
    given = arguments(step)
    table = given["block_table"].clone()
    for sequence, (length, count) in enumerate(zip(step.lengths, step.new, strict=True)):
        first = length - count
        seen_from = max(0, first - window + 1) if window else first // chunk * chunk
        assert seen_from >= BLOCK_SIZE
        table[sequence, : seen_from // BLOCK_SIZE] = 0
    expected_rows, _ = run(step, given)
    rows, _ = run(step, {**arguments(step), "block_table": table})
    assert torch.equal(rows, expected_rows)


@pytest.mark.parametrize("new", [(1,), (2,), (150,)])
def test_long_sequences(new: tuple[int, ...]) -> None:
    check(Step(lengths=(1100,), new=new, heads=(2, 1)))


@pytest.mark.parametrize("tokens", [2, 7, 16, 17, 70])
def test_whole_prompts(tokens: int) -> None:
    check(Step(lengths=(tokens, 5), new=(tokens, 5), padded_sequences=1))


def test_many_sequences_are_not_split() -> None:
    check(MANY)


@pytest.mark.parametrize(
    "step",
    [
        Step(lengths=(40, 300, 70), new=(1, 1, 1), padded_sequences=2),
        Step(lengths=(400,), new=(1,), heads=(2, 1), head_dim=80, window=150),
        Step(lengths=(40, 300, 70), new=(17, 1, 40), heads=(6, 2), norm=True, padded_tokens=3, padded_sequences=1),
        Step(lengths=(300, 70), new=(50, 70), heads=(2, 1), window=50),
        replace(MANY, padded_sequences=1),
    ],
    ids=["split", "split-window", "mixed", "mixed-window", "whole"],
)
@pytest.mark.parametrize(("softcap", "with_sinks"), [(1.5, False), (0.0, True), (1.5, True)])
def test_soft_cap_and_sinks(softcap: float, with_sinks: bool, step: Step) -> None:
    """Most scores are beyond the cap's half, and sinks weigh from a 20th of one key to 400."""
    check(replace(step, softcap=softcap, with_sinks=with_sinks))


@pytest.mark.parametrize("new", [(1, 1, 1), (17, 3, 40)])
def test_sequences_are_alone_and_results_repeat(new: tuple[int, ...]) -> None:
    step = Step(lengths=(40, 200, 129), new=new)
    given = arguments(step)
    whole, caches = run(step, given)
    again, caches_again = run(step, given)
    assert torch.equal(whole, again)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(caches, caches_again, strict=True))
    mine = slice(new[0], new[0] + new[1])
    lonely = {name: torch.full_like(given[name], torch.nan) for name in "qkv"}
    for name, x in lonely.items():
        x[mine] = given[name][mine]
    assert torch.equal(run(step, given | lonely)[0][mine], whole[mine])


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("padded_sequences", [2, 7])
def test_a_sequence_of_nothing_gets_zeros_in_decode(padded_sequences: int, with_sinks: bool) -> None:
    """Where sequences are split, and where not."""
    step = Step(lengths=(40,), new=(1,), padded_sequences=padded_sequences, with_sinks=with_sinks)
    out, _ = interpreter().run(call(step, arguments(step)))
    assert torch.equal(out[1:], torch.zeros_like(out[1:]))
