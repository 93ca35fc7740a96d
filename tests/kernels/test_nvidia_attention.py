"""Paged attention for NVIDIA, interpreted: shuffled block tables, all forms, groups, windows and padding."""

from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from triton_launches import H200, Call, Given, interpreter, worst_error

from engine.kernels.nvidia import reference

BLOCK_SIZE = 32
EPS = 1e-5
SMALL = replace(H200, multiprocessors=6)
"""A device on which the keys of a few sequences are split among few programs: every one takes time to interpret."""
FORMS = ["", "rope_", "norm_", "norm_rope_"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """lengths: of each sequence, the last `new` tokens of which are new. Padding as in steps that fill a larger bucket."""

    lengths: tuple[int, ...]
    new: tuple[int, ...]
    form: str = "rope_"
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    window: int = 0
    softcap: float = 0.0
    with_sinks: bool = False
    padded_sequences: int = 0
    padded_tokens: int = 0

    @property
    def decode(self) -> bool:
        return max(self.new) == 1

    @property
    def sinks(self) -> Tensor | None:
        """From next to nothing to as much as many keys together."""
        return torch.linspace(-3, 6, self.heads[0]) if self.with_sinks else None


MANY = Step(lengths=tuple(range(1, 8)), new=(1,) * 7, heads=(2, 2), head_dim=16)


@dataclass(frozen=True)
class Arguments:
    """The tensors of the operator, in the order of its schema but for norms and angles."""

    q: Tensor
    k: Tensor
    v: Tensor
    norms: tuple[Tensor, Tensor] | None
    angles: tuple[Tensor, Tensor] | None
    caches: tuple[Tensor, Tensor]
    query_start: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slots: Tensor


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
    angles = torch.rand(tokens + padded, dim // 2, generator=source) * 6

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return Arguments(
        q.unflatten(1, (query_heads, dim)),
        k.unflatten(1, (kv_heads, dim)),
        v.unflatten(1, (kv_heads, dim)),
        (normal(dim).float(), normal(dim).float()) if "norm" in step.form else None,
        (angles.cos(), angles.sin()) if "rope" in step.form else None,
        (caches[0], caches[1]),
        integers(starts),
        integers([*step.lengths, *[0] * step.padded_sequences]),
        torch.cat((table, torch.zeros(step.padded_sequences, width))).int(),
        integers([*slots, *[-1] * padded]),
    )


def call(step: Step, given: Arguments) -> Call:
    (query_heads, kv_heads), dim = step.heads, step.head_dim
    heads = [Given(x, ("T", n, dim)) for x, n in ((given.q, query_heads), (given.k, kv_heads), (given.v, kv_heads))]
    norms = [Given(weight) for weight in given.norms or ()]
    angles = [Given(angle, ("T", dim // 2)) for angle in given.angles or ()]
    caches = [Given(cache) for cache in given.caches]
    lists = [
        Given(given.query_start, ("S1",)),
        Given(given.seq_lens, ("S",)),
        Given(given.block_table, ("S", "B")),
        Given(given.slots, ("T",)),
    ]
    sinks = None if step.sinks is None else Given(step.sinks)
    others = [sinks, dim**-0.5, step.window, step.softcap, *([EPS] if norms else [])]
    return Call(
        operator=f"{step.form}paged_attention",
        arguments=(*heads, *norms, *angles, *caches, *lists, *others),
        shape=("T", query_heads, dim),
        dtype="bfloat16",
        dims={
            "T": len(given.q),
            "S": len(given.seq_lens),
            "S1": len(given.query_start),
            "B": given.block_table.shape[1],
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
    caches = (given.caches[0].to(dtype), given.caches[1].to(dtype))
    tokens = sum(step.new)
    norms = [weight.to(dtype) for weight in given.norms or ()]
    angles = [angle[:tokens].to(dtype) for angle in given.angles or ()]
    lists = (given.query_start[: len(step.new) + 1], given.seq_lens[: len(step.new)], given.block_table, given.slots[:tokens])
    operator = getattr(reference, f"{step.form}paged_attention")
    heads = (x[:tokens].to(dtype) for x in (given.q, given.k, given.v))
    numbers = (step.head_dim**-0.5, step.window, step.softcap, *([EPS] if norms else []))
    out = operator(*heads, *norms, *angles, *caches, *lists, step.sinks, *numbers)
    return out, caches


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("new", [(1, 1, 1), (17, 1, 40)])
def test_forms(new: tuple[int, ...], form: str) -> None:
    check(Step(lengths=(40, 150, 70), new=new, form=form, padded_sequences=2, padded_tokens=3))


@pytest.mark.parametrize(("heads", "head_dim"), [((2, 2), 128), ((6, 2), 80), ((4, 1), 96), ((8, 1), 64), ((16, 1), 16)])
@pytest.mark.parametrize("new", [(1, 1), (20, 2)])
def test_groups_and_sizes_of_heads(new: tuple[int, ...], heads: tuple[int, int], head_dim: int) -> None:
    check(Step(lengths=(70, 33), new=new, heads=heads, head_dim=head_dim))


@pytest.mark.parametrize("window", [1, 50, 1000])
@pytest.mark.parametrize("new", [(1, 1, 1), (50, 70, 1)])
def test_windows(new: tuple[int, ...], window: int) -> None:
    check(Step(lengths=(300, 70, 1), new=new, window=window, heads=(2, 1)))


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
        Step(lengths=(40, 300, 70), new=(17, 1, 40), heads=(6, 2), form="norm_rope_", padded_tokens=3, padded_sequences=1),
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
    lonely = [torch.full_like(x, torch.nan) for x in (given.q, given.k, given.v)]
    for x, y in zip(lonely, (given.q, given.k, given.v), strict=True):
        x[mine] = y[mine]
    assert torch.equal(run(step, replace(given, q=lonely[0], k=lonely[1], v=lonely[2]))[0][mine], whole[mine])


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("padded_sequences", [2, 7])
def test_a_sequence_of_nothing_gets_zeros_in_decode(padded_sequences: int, with_sinks: bool) -> None:
    """Where sequences are split, and where not."""
    step = Step(lengths=(40,), new=(1,), padded_sequences=padded_sequences, with_sinks=with_sinks)
    out, _ = interpreter().run(call(step, arguments(step)))
    assert torch.equal(out[1:], torch.zeros_like(out[1:]))
