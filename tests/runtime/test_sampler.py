"""Sampling against straightforward formulas, its distributions, and its independence of everything else."""

import math
from collections import Counter

import numpy as np
import pytest
from fake_executor import argmax
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.protocol import SamplingParams, TokenRules
from engine.runtime.sampling.logit_rules import adjust
from engine.runtime.sampling.philox import uniform
from engine.runtime.sampling.sample_row import largest, sample_row
from engine.runtime.sampling.sampler import NOT_FINITE, NOTHING_ALLOWED, Choice, sample
from engine.runtime.sampling.shared_rules import SharedRules
from engine.runtime.sampling.state import SamplingState

VOCAB = 1000


def state_of(
    params: SamplingParams, prompt: list[int] | None = None, generated: list[int] | None = None, stop: tuple[int, ...] = ()
) -> SamplingState:
    return SamplingState(params, prompt or [0], generated or [], frozenset(stop))


def choose(row: NDArray[np.float32], state: SamplingState) -> Choice:
    return sample(row[None], [0], [state], argmax)[0]


def some_logits(seed: int = 0, size: int = VOCAB, spread: float = 3.0) -> NDArray[np.float32]:
    row: NDArray[np.float32] = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    row *= np.float32(spread)
    return row


def scaled(probabilities: list[float]) -> NDArray[np.float32]:
    """A row z for `sample_row` with these probabilities."""
    logs = np.log(np.asarray(probabilities, np.float64))
    row: NDArray[np.float32] = (logs - logs.max()).astype(np.float32)
    return row


def reference_kept(row: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """Tokens that may be drawn and their probabilities, by sorting everything in float64."""
    logits = row.astype(np.float64) / temperature
    order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))
    order = [i for i in order if np.exp(logits[i] - logits.max()) >= min_p]
    if top_k:
        order = order[:top_k]
    weights = np.exp(logits[order] - logits.max())
    probabilities = weights / weights.sum()
    keep = len(order)
    if top_p < 1:
        keep = int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1
    kept = range(min(keep, len(order)))
    total = sum(probabilities[i] for i in kept)
    return {order[i]: float(probabilities[i] / total) for i in kept}


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**40))
def test_random_numbers_are_numpys_philox(seed: int, index: int) -> None:
    assert uniform(seed, index) == np.random.Generator(np.random.Philox(key=seed, counter=index)).random()


def test_greedy_takes_the_first_of_the_largest() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[[700, 300]] = 5
    assert choose(row, state_of(SamplingParams(max_tokens=1, temperature=0))) == Choice(300)
    assert choose(row, state_of(SamplingParams(max_tokens=1, temperature=1e-7))) == Choice(300)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "top_k+top_p", "top_p+min_p", "all", "low temperature"])
def test_samples_follow_the_filtered_distribution(name: str) -> None:
    params = {
        "temperature": SamplingParams(max_tokens=1, temperature=1.7),
        "top_k": SamplingParams(max_tokens=1, top_k=7),
        "top_p": SamplingParams(max_tokens=1, top_p=0.9),
        "min_p": SamplingParams(max_tokens=1, min_p=0.1),
        "top_k+top_p": SamplingParams(max_tokens=1, top_k=20, top_p=0.7, temperature=1.3),
        "top_p+min_p": SamplingParams(max_tokens=1, top_p=0.7, min_p=0.05),
        "all": SamplingParams(max_tokens=1, top_k=50, top_p=0.95, min_p=0.02, temperature=1.5),
        "low temperature": SamplingParams(max_tokens=1, temperature=0.3),
    }[name]
    row = some_logits(size=300, spread=2.0)
    draws = 4000
    state = SamplingState(SamplingParams(**{**{f: getattr(params, f) for f in params.__struct_fields__}, "seed": 11}), [0], [], frozenset())
    counts: Counter[int] = Counter()
    for index in range(draws):
        state.index = index
        counts[choose(row, state).token] += 1
    expected = reference_kept(row, params.temperature, params.top_k, params.top_p, params.min_p)
    assert counts.keys() <= expected.keys()
    # Pearson's chi-square over cells of at least 5 expected draws; its mean is the degrees of freedom
    # and its standard deviation sqrt(2 df), so 5 of those above is a chance of about one in a million
    cells = [token for token, p in expected.items() if p * draws >= 5]
    rest = draws - sum(counts[token] for token in cells)
    rest_expected = draws - sum(expected[token] * draws for token in cells)
    statistic = sum((counts[token] - expected[token] * draws) ** 2 / (expected[token] * draws) for token in cells)
    if rest_expected >= 5:
        statistic += (rest - rest_expected) ** 2 / rest_expected
    freedom = max(1, len(cells) - (rest_expected < 5))
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 2, 255, 256, 257, 3000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.0, 0.1, 0.5, 0.9, 0.9999]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    u=st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-53]),
)
def test_only_tokens_that_pass_every_filter_are_drawn(
    seed: int, size: int, spread: float, top_k: int, top_p: float, min_p: float, u: float
) -> None:
    row = some_logits(seed, size, spread)
    token = sample_row(row - row.max(), u, temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    # where float32 rounding may move the boundary by one token, so may we
    slack = 1e-5
    allowed = reference_kept(row, 1.0, top_k, min(1.0, top_p + slack), max(0.0, min_p - slack))
    assert token in allowed


def test_top_p_keeps_the_shortest_prefix_that_reaches_it() -> None:
    z = scaled([0.5, 0.25, 0.125, 0.125])
    last = 1 - 2**-53
    assert sample_row(z, last, temperature=1.0, top_k=0, top_p=0.49, min_p=0.0) == 0
    assert sample_row(z, last, temperature=1.0, top_k=0, top_p=0.51, min_p=0.0) == 1
    assert sample_row(z, last, temperature=1.0, top_k=0, top_p=0.74, min_p=0.0) == 1
    assert sample_row(z, last, temperature=1.0, top_k=0, top_p=0.9, min_p=0.0) == 3
    assert sample_row(z, last, temperature=1.0, top_k=0, top_p=0.0, min_p=0.0) == 0


def test_top_p_refers_to_what_top_k_leaves() -> None:
    z = scaled([0.4, 0.3, 0.2, 0.1])
    last = 1 - 2**-53
    assert sample_row(z, last, temperature=1.0, top_k=2, top_p=0.5, min_p=0.0) == 0, "0.4 of 0.7 is more than half"
    assert sample_row(z, last, temperature=1.0, top_k=0, top_p=0.5, min_p=0.0) == 1, "0.4 of 1 is not"


def test_top_p_refers_to_what_min_p_leaves() -> None:
    z = scaled([0.4, 0.3, 0.2, 0.1])
    last = 1 - 2**-53
    for top_k in (0, 4):
        assert sample_row(z, last, temperature=1.0, top_k=top_k, top_p=0.5, min_p=0.7) == 0, "0.4 of 0.7 is more than half"
        assert sample_row(z, last, temperature=1.0, top_k=top_k, top_p=0.5, min_p=0.2) == 1, "0.4 of 1 is not"


def test_top_k_keeps_exactly_k_lower_ids_first_among_equals() -> None:
    z = np.zeros(10, np.float32)
    assert {sample_row(z, u, temperature=1.0, top_k=3, top_p=1.0, min_p=0.0) for u in np.linspace(0, 0.999, 50)} == {0, 1, 2}


def test_flat_row_needs_all_of_it_for_top_p() -> None:
    size = 5000
    z = np.zeros(size, np.float32)
    assert sample_row(z, 1 - 2**-53, temperature=1.0, top_k=0, top_p=0.9, min_p=0.0) == math.ceil(0.9 * size) - 1


def test_impossible_tokens_are_never_drawn() -> None:
    z = np.full(600, -np.inf, np.float32)
    z[[5, 300]] = 0
    drawn = {
        sample_row(z, u, temperature=1.0, top_k=top_k, top_p=top_p, min_p=0.0)
        for u in (0.0, 0.3, 0.6, 1 - 2**-53)
        for top_k in (0, 10)
        for top_p in (1.0, 0.9999999)
    }
    assert drawn == {5, 300}


def test_smallest_temperatures_do_not_overflow() -> None:
    row = some_logits(spread=1e4)
    with np.errstate(all="raise", under="ignore"):
        assert choose(row, state_of(SamplingParams(max_tokens=1, temperature=1e-5, seed=1))).token == int(row.argmax())


def test_penalties_by_their_formulas() -> None:
    row = some_logits(3)
    prompt, generated = [1, 2, 2, 3], [2, 4, 4, 4]
    params = SamplingParams(
        max_tokens=9,
        temperature=0,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.25,
        token_rules=TokenRules.of({4: 2.5}),
    )
    expected = row.astype(np.float64)
    expected[4] += 2.5
    for token in {1, 2, 3, 4}:
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
    for token, count in Counter(generated).items():
        expected[token] -= 0.4 + 0.25 * count
    for state in (state_of(params, prompt, generated), _replayed(params, prompt, generated)):
        changed = row.copy()
        adjust(changed, state)
        np.testing.assert_allclose(changed, expected, rtol=1e-6)
        assert choose(row, state).token == int(changed.argmax())


def _replayed(params: SamplingParams, prompt: list[int], generated: list[int]) -> SamplingState:
    state = state_of(params, prompt)
    for token in generated:
        state.record(token)
    return state


def test_penalties_of_long_texts() -> None:
    text = [i % 300 for i in range(1000)]
    state = _replayed(SamplingParams(max_tokens=1, frequency_penalty=1.0, repetition_penalty=2.0), text[:10], text)
    assert state.generated is not None
    assert state.seen is not None
    counts = dict(zip(state.generated.ids.tolist(), state.generated.counts.tolist(), strict=True))
    assert counts == Counter(text)
    assert sorted(state.seen.ids.tolist()) == sorted(set(text))


def test_bias_can_force_and_forbid() -> None:
    row = some_logits(4)
    best = int(row.argmax())
    assert choose(row, state_of(SamplingParams(max_tokens=1, token_rules=TokenRules.of({17: 100.0}), seed=1))).token == 17
    assert choose(row, state_of(SamplingParams(max_tokens=1, temperature=0, token_rules=TokenRules.of({best: -100.0})))).token != best


def test_only_what_is_allowed_is_chosen() -> None:
    row = some_logits(4)
    rules = TokenRules.of({8: 50.0}, [30, 20, 10])
    best = max((10, 20, 30), key=lambda token: row[token])
    assert choose(row, state_of(SamplingParams(max_tokens=1, temperature=0, token_rules=rules))).token == best
    drawn = {choose(row, state_of(SamplingParams(max_tokens=1, seed=seed, token_rules=rules))).token for seed in range(60)}
    assert drawn <= {10, 20, 30}
    assert len(drawn) > 1
    nothing = SamplingParams(max_tokens=9, min_tokens=1, token_rules=TokenRules.of({}, [3]))
    assert choose(row, state_of(nothing, stop=(3,))).error == NOTHING_ALLOWED


def test_bad_words_are_never_completed() -> None:
    """By tokens of the answer alone, the same if a worker takes it over."""
    row = np.zeros(VOCAB, np.float32)
    row[[5, 6, 7, 8]] = [9, 8, 7, 6]
    params = SamplingParams(max_tokens=9, temperature=0, bad_words=((5, 5), (6, 5, 6), (7,)))
    tokens: list[int] = []
    state = state_of(params, prompt=[5])
    for _ in range(8):
        tokens.append(choose(row, state).token)
        state.record(tokens[-1])
    assert tokens == [5, 6, 5, 8, 5, 6, 5, 8]
    for cut in range(8):
        assert choose(row, state_of(params, [5], tokens[:cut])).token == tokens[cut]


def test_rules_are_kept_once_for_all_choices() -> None:
    rules = [TokenRules.of(dict.fromkeys(range(500), 1.0), range(600)) for _ in range(3)]
    shared = SharedRules()
    params = [shared.share(SamplingParams(max_tokens=1, seed=seed, token_rules=each)) for seed, each in enumerate(rules)]
    assert len({id(each.token_rules) for each in params}) == 1
    assert [each.seed for each in params] == [0, 1, 2]
    assert not state_of(params[0]).biased.flags.owndata, "nor are they copied"
    other = shared.share(SamplingParams(max_tokens=1, token_rules=TokenRules.of({1: 1.0})))
    assert other.token_rules == TokenRules.of({1: 1.0})
    assert shared.share(SamplingParams(max_tokens=1)).token_rules is None


def test_stops_wait_for_min_tokens() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[[3, 4]] = [9, 8]
    params = SamplingParams(max_tokens=9, min_tokens=2, temperature=0)
    tokens = []
    state = state_of(params, stop=(3,))
    for _ in range(3):
        tokens.append(choose(row, state).token)
        state.record(tokens[-1])
    assert tokens == [4, 4, 3]


def test_logprobs_are_those_of_the_model() -> None:
    row = some_logits(5)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    order = np.argsort(-row, kind="stable")
    for params in (
        SamplingParams(max_tokens=1, temperature=0, logprobs=5),
        SamplingParams(
            max_tokens=1, temperature=0.5, logprobs=5, seed=3, top_k=9, repetition_penalty=1.5, token_rules=TokenRules.of({2: 50.0})
        ),
    ):
        choice = choose(row, state_of(params))
        assert choice.logprob is not None
        assert choice.logprob.logprob == pytest.approx(exact[choice.token], abs=1e-5)
        assert [token for token, _ in choice.logprob.top] == order[:5].tolist()
        assert [value for _, value in choice.logprob.top] == pytest.approx(exact[order[:5]], abs=1e-5)
    named = choose(row, state_of(SamplingParams(max_tokens=1, temperature=0, logprobs=5, logprob_token_ids=(7, int(order[0]), 3))))
    assert named.logprob is not None
    assert [token for token, _ in named.logprob.top] == [named.token, 7, 3]
    assert [value for _, value in named.logprob.top] == pytest.approx(exact[[named.token, 7, 3]], abs=1e-5)
    none_asked = choose(row, state_of(SamplingParams(max_tokens=1, temperature=0, logprobs=0)))
    assert none_asked.logprob is not None
    assert none_asked.logprob.top == []
    assert choose(row, state_of(SamplingParams(max_tokens=1, temperature=0))).logprob is None


def test_largest_never_asks_for_more_than_there_is() -> None:
    row = np.asarray([1, 3, 3, 2], np.float32)
    assert largest(row, 3).tolist() == [1, 2, 3]
    assert largest(row, 9).tolist() == [1, 2, 3, 0]
    assert largest(row, 0).tolist() == []


many_params = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 3),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    logprobs=st.sampled_from([None, 0, 4]),
)


@settings(max_examples=50, deadline=None)
@given(batch=st.lists(many_params, min_size=1, max_size=6), seed=st.integers(0, 100), offset=st.integers(0, 3))
def test_a_row_does_not_depend_on_its_batch(batch: list[SamplingParams], seed: int, offset: int) -> None:
    rows = np.stack([some_logits(seed + index) for index in range(len(batch) + offset)])
    # an odd vocabulary puts rows at other alignments than they have alone
    rows = np.ascontiguousarray(rows[:, : VOCAB - 1])
    where = [index + offset for index in range(len(batch))]
    together = sample(rows, where, [state_of(params) for params in batch], argmax)
    for index, params in zip(where, batch, strict=True):
        assert together[index - offset] == choose(rows[index].copy(), state_of(params))


def test_seeds_repeat_and_differ() -> None:
    row = some_logits(6)

    def tokens(seed: int | None) -> list[int]:
        state = state_of(SamplingParams(max_tokens=20, seed=seed))
        chosen = []
        for _ in range(20):
            chosen.append(choose(row, state).token)
            state.record(chosen[-1])
        return chosen

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(-1) == tokens(2**64 - 1)
    assert tokens(None) != tokens(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("neighbour", [0.0, 1.0])
def test_only_the_row_that_is_not_finite_fails(bad: float, temperature: float, neighbour: float) -> None:
    rows = np.stack([some_logits(7), some_logits(8)])
    rows[0, 123] = bad
    states = [state_of(SamplingParams(max_tokens=1, temperature=t, seed=1)) for t in (temperature, neighbour)]
    broken, whole = sample(rows, [0, 1], states, argmax)
    assert broken == Choice(-1, error=NOT_FINITE)
    assert whole == choose(rows[1], states[1])


def test_nothing_left_to_choose_is_an_error() -> None:
    row = np.zeros(2, np.float32)
    state = state_of(SamplingParams(max_tokens=5, min_tokens=2), stop=(0, 1))
    assert choose(row, state).error == NOTHING_ALLOWED
    assert choose(np.full(2, -np.inf, np.float32), state_of(SamplingParams(max_tokens=5, temperature=0))).error == NOT_FINITE
