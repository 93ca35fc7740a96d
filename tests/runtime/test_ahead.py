"""Steps that are planned before the one at hand is computed change nothing: every sequence gets the tokens it gets alone."""

from typing import Any

import pytest
from fake_executor import FakeExecutor, solo, solo_routes, solo_scores, tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelined import Pipelined

from engine.options.runtime import RuntimeOptions, Scheduling
from engine.protocol import SamplingParams, Submit, TokenRules
from engine.runtime.core import EngineCore

VOCAB = 32
CONTEXT = 24


def make(*, num_blocks: int = 64, block_size: int = 4, eos: tuple[int, ...] = (), poison: int | None = None, **options: Any) -> Pipelined:
    manifest = tiny_manifest(vocab_size=VOCAB, max_context=CONTEXT, block_size=block_size)
    executor = FakeExecutor(num_blocks=num_blocks, manifest=manifest, poison=poison)
    return Pipelined(EngineCore(executor, RuntimeOptions(**{"max_num_seqs": 8, "max_batch_tokens": 64, **options}), eos_token_ids=eos))


def steps(pipelined: Pipelined) -> list[tuple[int, int, int]]:
    executor = pipelined.core._executor
    assert isinstance(executor, FakeExecutor)
    return executor.steps


requests = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=14),
    st.builds(
        SamplingParams,
        max_tokens=st.integers(0, 12),
        prompt_logprobs=st.sampled_from([None, None, 1]),
        routed_from=st.sampled_from([None, None, 0, 5]),
        temperature=st.sampled_from([0.0, 0.9]),
        seed=st.integers(0, 5),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        min_tokens=st.sampled_from([0, 3]),
    ),
)
EVENTS = ("submit", "abort", "begin", "plan ahead", "compute", "finish", "finish late", "take back")


@settings(max_examples=200, deadline=None)
@given(
    load=st.lists(requests, min_size=1, max_size=6),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=60),
    num_blocks=st.integers(6, 20),
    block_size=st.integers(1, 4),
    max_num_seqs=st.integers(1, 4),
    spare_tokens=st.integers(0, 8),
    eos=st.sampled_from([(), (3, 9, 17)]),
    scheduling=st.sampled_from(["fair", "fcfs"]),
)
def test_whatever_happens_when(
    load: list[tuple[list[int], SamplingParams]],
    events: list[tuple[str, int]],
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    spare_tokens: int,
    eos: tuple[int, ...],
    scheduling: Scheduling,
) -> None:
    options: dict[str, Any] = {
        "max_num_seqs": max_num_seqs,
        "max_batch_tokens": max_num_seqs + spare_tokens,
        "scheduling": scheduling,
    }
    pipelined = make(num_blocks=num_blocks, block_size=block_size, eos=eos, **options)
    core = pipelined.core
    to_come = {str(index): Submit(str(index), prompt, params) for index, (prompt, params) in enumerate(load)}
    aborted: set[str] = set()
    for event, number in events:
        match event:
            case "submit" if to_come:
                pipelined.take_back()
                core.submit(to_come.pop(next(iter(to_come))))
            case "abort":
                pipelined.take_back()
                core.abort(str(number))
                aborted.add(str(number))
            case "begin":
                pipelined.begin()
            case "plan ahead":
                pipelined.plan_ahead()
            case "compute":
                pipelined.compute()
            case "finish" | "finish late":
                pipelined.finish(next_has_begun=event == "finish late")
            case "take back":
                pipelined.take_back()
        core.check()
    for submit in to_come.values():
        core.submit(submit)
    pipelined.collect(core.report().outputs)
    pipelined.run()
    assert core.report().stats.blocks_used == 0
    for index, (prompt, params) in enumerate(load):
        id = str(index)
        if len(prompt) > num_blocks * block_size:
            assert pipelined.ended[id].error
            continue
        alone = solo(prompt, params, vocab_size=VOCAB, max_context=CONTEXT, capacity=num_blocks * block_size, stop_ids=frozenset(eos))
        tokens, scores, scores_alone = pipelined.tokens.get(id, []), pipelined.scores.get(id, []), solo_scores(prompt, params)
        routes, routes_alone = pipelined.routes.get(id, []), solo_routes(prompt, alone, params)
        if id in aborted and id not in pipelined.ended:
            assert tokens == alone[: len(tokens)]
            assert scores == scores_alone[: len(scores)]
            assert routes == routes_alone[: len(routes)]
        else:
            assert tokens == alone
            assert scores == scores_alone
            assert routes == routes_alone
            assert pipelined.ended[id].finish_reason == ("stop" if alone and alone[-1] in eos else "length")


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


def test_steps_are_those_that_would_be_made_one_by_one() -> None:
    load = [Submit(str(index), [index + 1] * (5 * index + 1), greedy(3 + index)) for index in range(4)]
    one_by_one, ahead = make(max_batch_tokens=10), make(max_batch_tokens=10)
    for submit in load:
        one_by_one.core.submit(submit)
        ahead.core.submit(submit)
    while one_by_one.core.has_work():
        one_by_one.collect(one_by_one.core.step().outputs)
    ahead.run()
    assert ahead.tokens == one_by_one.tokens
    assert steps(ahead) == steps(one_by_one)


def test_an_end_that_nobody_knew_of_is_computed_no_further() -> None:
    alone = solo([1, 2], greedy(8), max_context=CONTEXT)
    end = alone.index(alone[3])
    pipelined = make(eos=(alone[end],))
    pipelined.core.submit(Submit("a", [1, 2], greedy(8)))
    pipelined.run()
    assert pipelined.tokens["a"] == alone[: end + 1]
    assert pipelined.ended["a"].finish_reason == "stop"
    assert len(steps(pipelined)) == end + 1, "no step for a sequence that has ended"


def test_a_sequence_that_reaches_its_length_is_not_planned_further() -> None:
    pipelined = make()
    pipelined.core.submit(Submit("a", [1, 2], greedy(2)))
    planned_ahead = []
    for _ in range(2):
        pipelined.begin()
        pipelined.plan_ahead()
        planned_ahead.append(pipelined.planned is not None)
        pipelined.compute()
        pipelined.finish(next_has_begun=True)
    assert planned_ahead == [True, False]
    assert not pipelined.core.has_work()
    assert pipelined.tokens["a"] == solo([1, 2], greedy(2))


def test_nobody_is_preempted_for_a_step_ahead() -> None:
    """Four sequences fill the cache just when one of them ends and makes room for the others' next blocks."""
    pipelined = make(num_blocks=12, block_size=2, max_num_seqs=4)
    load = {id: Submit(id, [number, 1, 2], greedy(4 if id == "a" else 6)) for number, id in enumerate("abcd")}
    for submit in load.values():
        pipelined.core.submit(submit)
    planned_ahead = []
    while pipelined.core.has_work():
        pipelined.begin()
        pipelined.plan_ahead()
        planned_ahead.append(pipelined.planned is not None)
        pipelined.compute()
        pipelined.finish(next_has_begun=True)
    assert planned_ahead == [True, True, True, False, True, False]
    assert pipelined.core.report().stats.preemptions_total == 0
    assert pipelined.tokens == {id: solo(submit.prompt, submit.params) for id, submit in load.items()}


@pytest.mark.parametrize("next_has_begun", [False, True])
def test_output_that_is_not_finite_is_found_before_the_next_step(next_has_begun: bool) -> None:
    pipelined = make(poison=9)
    pipelined.core.submit(Submit("bad", [1, 9, 2], greedy(8)))
    pipelined.core.submit(Submit("good", [1, 2], SamplingParams(max_tokens=4, temperature=0.0, token_rules=TokenRules.of({9: -100.0}))))
    pipelined.begin()
    pipelined.plan_ahead()
    pipelined.compute()
    pipelined.finish(next_has_begun=next_has_begun)
    pipelined.run()
    assert "not finite" in (pipelined.ended["bad"].error or "")
    assert len(pipelined.tokens["good"]) == 4
    assert steps(pipelined)[1][:2] == (1, 1), "the bad sequence is in no second step"


def test_an_abort_while_its_step_is_computed() -> None:
    pipelined = make()
    for id in "ab":
        pipelined.core.submit(Submit(id, [ord(id) % VOCAB] * 5, greedy(6)))
    pipelined.begin()
    pipelined.plan_ahead()
    pipelined.compute()
    pipelined.take_back()
    pipelined.core.abort("a")
    pipelined.core.check()
    pipelined.core.submit(Submit("c", [7] * 9, greedy(6)))  # it may get the blocks that a's step still writes to
    pipelined.finish(next_has_begun=False)
    pipelined.run()
    assert "a" not in pipelined.tokens
    assert pipelined.tokens == {"b": solo([ord("b") % VOCAB] * 5, greedy(6)), "c": solo([7] * 9, greedy(6))}
