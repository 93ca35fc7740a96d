"""Attention over latents for NVIDIA, interpreted: against the operator's meaning, over shuffled blocks, with padding and splits."""

from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, emit, holds, interpreter, problems_of, worst_error

from engine.kernels.attention import latent as meaning
from engine.kernels.attention.reference import write_keys
from engine.kernels.cut_operators import LATENT_ATTENTION
from engine.kernels.nvidia import reference

BLOCK_SIZE = 32
SMALL = replace(H200, multiprocessors=6)
"""A device on which the latents of a few sequences are split among few programs: every one takes time to interpret."""
Arguments = dict[str, Tensor]
"""Of the operator, by name."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """lengths: of each sequence, the last `new` tokens of which are new. Padding as in steps that fill a larger bucket."""

    lengths: tuple[int, ...]
    new: tuple[int, ...]
    heads: int = 4
    rank: int = 64
    rope: int = 16
    padded_sequences: int = 0
    padded_tokens: int = 0

    @property
    def decode(self) -> bool:
        return max(self.new) == 1

    @property
    def width(self) -> int:
        return self.rank + self.rope

    @property
    def scale(self) -> float:
        return float(self.width**-0.5)

    @property
    def tokens(self) -> int:
        return sum(self.new)

    @property
    def positions(self) -> list[range]:
        """Of the new tokens of each sequence."""
        return [range(length - new, length) for length, new in zip(self.lengths, self.new, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What earlier steps have left: the latents of each sequence's old tokens, and the blocks of all."""

    old: list[Tensor]
    blocks: Tensor


def arguments(step: Step) -> tuple[Arguments, Kept]:
    """Random numbers; what no kernel may use (cache past a sequence's length, free blocks, padded tokens) is NaN."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).bfloat16()

    sequences, width = len(step.lengths), -(-max(step.lengths) // BLOCK_SIZE) + 1
    table = (torch.randperm(sequences * width, generator=source) + 1).view(sequences, width)
    kept = Kept(old=[normal(new.start, step.width) for new in step.positions], blocks=table)
    slots = [int(table[s, p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE for s, new in enumerate(step.positions) for p in new]
    cache = torch.full((sequences * width + 1, 1, BLOCK_SIZE, step.width), torch.nan).bfloat16()
    for blocks, latents in zip(table, kept.old, strict=True):
        old = torch.arange(len(latents))
        cache[blocks[old // BLOCK_SIZE], 0, old % BLOCK_SIZE] = latents
    padded = step.padded_sequences if step.decode else step.padded_tokens
    total = step.tokens + padded
    q, q_rope, latents = normal(step.heads, total, step.rank), normal(total, step.heads, step.rope), normal(total, step.width)
    q[:, step.tokens :], q_rope[step.tokens :], latents[step.tokens :] = torch.nan, torch.nan, torch.nan
    starts = [0, *accumulate(step.new)]
    starts += [starts[-1] + (i + 1 if step.decode else 0) for i in range(step.padded_sequences)]

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    given = {
        "q": q,
        "q_rope": q_rope,
        "latents": latents,
        "cache": cache,
        "cu_seqlens": integers(starts),
        "seq_lens": integers([*step.lengths, *[0] * step.padded_sequences]),
        "block_table": torch.cat((table, torch.zeros(step.padded_sequences, width))).int(),
        "slot_mapping": integers([*slots, *[-1] * padded]),
    }
    return given, kept


SYMBOLIC: dict[str, tuple[int | str, ...]] = {"cu_seqlens": ("S1",), "seq_lens": ("S",), "block_table": ("S", "B"), "slot_mapping": ("T",)}


def call(step: Step, given: Arguments) -> Call:
    shapes = SYMBOLIC | {
        "q": (step.heads, "T", step.rank),
        "q_rope": ("T", step.heads, step.rope),
        "latents": ("T", step.width),
    }
    return Call(
        operator="latent_attention",
        arguments=(*(Given(given[name], shapes.get(name)) for name in LATENT_ATTENTION.tensors), step.scale),
        shape=(step.heads, "T", step.rank),
        dtype="bfloat16",
        dims={
            "T": given["q"].shape[1],
            "S": len(given["seq_lens"]),
            "S1": len(given["cu_seqlens"]),
            "B": given["block_table"].shape[1],
            "Q": max(step.new),
        },
        device=SMALL,
    )


def run(step: Step, given: Arguments, use: str | None = None) -> tuple[Tensor, Tensor]:
    """The rows of real tokens, and the cache afterwards."""
    out, after = interpreter().run(replace(call(step, given), use=use))
    (cache,) = (x for x in after if isinstance(x, Tensor) and x.dim() == 4)
    return out[:, : step.tokens], cache


def real(step: Step, given: Arguments, dtype: torch.dtype) -> Arguments:
    """Without padding, numbers in `dtype`; the cache is a copy."""
    tokens, sequences = step.tokens, len(step.new)
    ends = {"latents": tokens, "q_rope": tokens, "slot_mapping": tokens, "cu_seqlens": sequences + 1, "seq_lens": sequences}
    cut = {name: x[: ends[name]] if name in ends else x for name, x in given.items()} | {"q": given["q"][:, :tokens]}
    return {name: x.to(dtype, copy=True) if x.is_floating_point() else x for name, x in cut.items()}


def exact(step: Step, given: Arguments, kept: Kept) -> Tensor:
    """What the operator means, in float64 and over a cache that lies as the meaning has it."""
    wide = real(step, given, torch.float64)
    cache = torch.full_like(wide["cache"], torch.nan)
    for blocks, latents in zip(kept.blocks, kept.old, strict=True):
        old = torch.arange(len(latents))
        write_keys(latents[:, None].double(), cache, blocks[old // BLOCK_SIZE] * BLOCK_SIZE + old % BLOCK_SIZE)
    return meaning.latent_attention(**wide | {"cache": cache}, scale=step.scale)


def typical_error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square."""
    return float((actual.double() - exact).square().mean().sqrt())


def check(step: Step, use: str | None = None) -> None:
    given, kept = arguments(step)
    actual, cache = run(step, given, use)
    expected = exact(step, given, kept)
    low = real(step, given, torch.bfloat16)
    rounded = reference.latent_attention(**low, scale=step.scale)
    assert worst_error(actual, expected) <= 2 * worst_error(rounded, expected)
    assert typical_error(actual, expected) <= typical_error(rounded, expected)
    assert torch.equal(cache.view(torch.int16), low["cache"].view(torch.int16)), "the cache is written where tokens have slots alone"


DECODE, MIXED = (1, 1, 1), (17, 1, 8)


@pytest.mark.parametrize("new", [DECODE, MIXED])
@pytest.mark.parametrize(
    ("heads", "rank", "rope"), [(1, 16, 8), (16, 512, 64), (20, 256, 64), (7, 40, 6), (40, 48, 16), (5, 22, 4), (128, 16, 16), (65, 32, 16)]
)
def test_heads_and_widths(new: tuple[int, ...], heads: int, rank: int, rope: int) -> None:
    """Of one program and of several that share the heads of a token, evenly or not."""
    check(Step(lengths=(40, 150, 70), new=new, heads=heads, rank=rank, rope=rope, padded_sequences=2, padded_tokens=3))


@pytest.mark.parametrize("new", [(1,), (2,), (150,)])
def test_long_sequences(new: tuple[int, ...]) -> None:
    check(Step(lengths=(1100,), new=new))


@pytest.mark.parametrize("tokens", [2, 7, 16, 17, 70])
def test_whole_prompts(tokens: int) -> None:
    check(Step(lengths=(tokens, 1, 5), new=(tokens, 1, 5), padded_sequences=1))


def launched(step: Step) -> list[str]:
    """The kernels of a step, by name."""
    given = call(step, arguments(step)[0])
    return [launch.function.__name__ for launch in emit(given)[0] if holds(launch, given.dims)]


@pytest.mark.parametrize("padded_sequences", [0, 1])
def test_many_sequences_are_not_split(padded_sequences: int) -> None:
    step = Step(lengths=tuple(range(1, 9)), new=(1,) * 8, rank=16, padded_sequences=padded_sequences)
    assert launched(step) == ["latent_write_kernel", "latent_decode_kernel"]
    check(step)


def test_splits_without_latents() -> None:
    """A sequence of one tile beside a long one: of its splits one sees something."""
    step = Step(lengths=(3, 400), new=(1, 1))
    assert launched(step) == ["latent_write_kernel", "latent_decode_kernel", "attention_combine_kernel"]
    check(step)


@pytest.mark.parametrize("padded_sequences", [2, 9])
def test_a_sequence_of_nothing_gets_zeros_in_decode(padded_sequences: int) -> None:
    """Where sequences are split, and where not."""
    step = Step(lengths=(40,), new=(1,), padded_sequences=padded_sequences)
    out, _ = interpreter().run(call(step, arguments(step)[0]))
    assert torch.equal(out[:, 1:], torch.zeros_like(out[:, 1:]))


def test_sequences_of_no_tokens_in_a_mixed_step() -> None:
    """Between others, as a sequence that a step leaves out would be."""
    check(Step(lengths=(40, 33, 70), new=(17, 0, 1)))


@pytest.mark.parametrize("new", [(1, 1, 1), (17, 3, 40)])
def test_sequences_are_alone_and_results_repeat(new: tuple[int, ...]) -> None:
    step = Step(lengths=(40, 200, 129), new=new)
    given, _ = arguments(step)
    whole, cache = run(step, given)
    again, cache_again = run(step, given)
    assert torch.equal(whole, again)
    assert torch.equal(cache.view(torch.int16), cache_again.view(torch.int16))
    mine = slice(new[0], new[0] + new[1])
    lonely = {name: torch.full_like(given[name], torch.nan) for name in ("q", "q_rope", "latents")}
    lonely["q"][:, mine], lonely["q_rope"][mine], lonely["latents"][mine] = (
        given["q"][:, mine],
        given["q_rope"][mine],
        given["latents"][mine],
    )
    assert torch.equal(run(step, given | lonely)[0][:, mine], whole[:, mine])


def test_rows_may_lie_apart() -> None:
    """Queries that are a part of something larger, and heads that lie side by side."""
    step = Step(lengths=(40, 70), new=(17, 1))
    given, _ = arguments(step)
    expected, _ = run(step, given)
    apart = given | {"q": given["q"].transpose(0, 1).contiguous().transpose(0, 1)}
    for name in ("q_rope", "latents"):
        wide = torch.full((*given[name].shape[:-1], given[name].shape[-1] + 8), torch.nan).bfloat16()
        wide[..., : given[name].shape[-1]] = given[name]
        apart[name] = wide[..., : given[name].shape[-1]]
    assert torch.equal(run(step, apart)[0], expected)


@pytest.mark.parametrize("new", [(1, 1), (1, 5)])
@pytest.mark.parametrize("heads", [12, 24, 72])
def test_every_candidate(heads: int, new: tuple[int, ...]) -> None:
    step = Step(lengths=(40, 150), new=new, heads=heads, rank=16)
    problems = {problem.kind: problem for problem in problems_of(call(step, arguments(step)[0]))}
    assert set(problems) == {"decode", "prefill"}
    names = problems["decode" if step.decode else "prefill"].candidates
    assert len(names) >= 2
    for name in names:
        check(step, name)
