"""Whatever the load, every sequence gets exactly the tokens it gets alone."""

from dataclasses import dataclass, field

import pytest
from fake_executor import FakeExecutor, solo, solo_routes, solo_scores, tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.options.runtime import RuntimeOptions, Scheduling
from engine.protocol import Output, PromptLogprob, SamplingParams, Submit
from engine.runtime.caches.caches import Caches
from engine.runtime.caches.digests import ROOT_DIGEST
from engine.runtime.core import EngineCore
from engine.runtime.scheduler import Scheduler
from engine.runtime.sequence import Sequence

VOCAB = 32


def make_core(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_batch_tokens: int = 64,
    max_context: int = 64,
    eos: tuple[int, ...] = (),
    scheduling: Scheduling = "fair",
) -> tuple[EngineCore, FakeExecutor]:
    executor = FakeExecutor(num_blocks=num_blocks, manifest=tiny_manifest(vocab_size=VOCAB, max_context=max_context, block_size=block_size))
    options = RuntimeOptions(max_num_seqs=max_num_seqs, max_batch_tokens=max_batch_tokens, scheduling=scheduling)
    return EngineCore(executor, options, eos_token_ids=eos), executor


@dataclass
class Collected:
    """Everything the engine said about each id."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    scores: dict[str, list[PromptLogprob]] = field(default_factory=dict)
    routes: dict[str, list[bytes]] = field(default_factory=dict)
    last: dict[str, Output] = field(default_factory=dict)

    def add(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.id not in self.last or self.last[output.id].finish_reason is None, "output after the end"
            assert not (output.prompt_logprobs and self.tokens.get(output.id)), "a score after a token"
            self.tokens.setdefault(output.id, []).extend(output.tokens)
            self.scores.setdefault(output.id, []).extend(output.prompt_logprobs)
            self.routes.setdefault(output.id, []).extend(output.routed_experts)
            self.last[output.id] = output


def run(core: EngineCore, limit: int = 10_000) -> Collected:
    collected = Collected()
    for _ in range(limit):
        if not core.has_work():
            return collected
        collected.add(core.step().outputs)
        core.check()
    raise AssertionError("the engine does not come to an end")


def greedy(max_tokens: int = 8) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


@dataclass
class Arrival:
    step: int
    prompt: list[int]
    params: SamplingParams
    abort_after: int | None


prompts = st.tuples(
    st.sampled_from([[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]]), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
).map(lambda parts: parts[0] + parts[1])
arrivals = st.builds(
    Arrival,
    step=st.integers(0, 20),
    prompt=prompts,
    params=st.builds(
        SamplingParams,
        max_tokens=st.integers(0, 16),
        prompt_logprobs=st.sampled_from([None, None, 0, 2]),
        routed_from=st.sampled_from([None, None, 0, 5]),
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        seed=st.integers(0, 5),
        top_k=st.sampled_from([0, 3]),
        top_p=st.sampled_from([1.0, 0.8]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
    ),
    abort_after=st.none() | st.integers(0, 10),
)


@settings(max_examples=150, deadline=None)
@given(
    load=st.lists(arrivals, min_size=1, max_size=10),
    num_blocks=st.integers(2, 14),
    block_size=st.integers(1, 5),
    max_num_seqs=st.integers(1, 5),
    spare_tokens=st.integers(0, 10),
    eos=st.sampled_from([(), (3, 9)]),
    scheduling=st.sampled_from(["fair", "fcfs"]),
)
def test_tokens_do_not_depend_on_the_load(
    load: list[Arrival],
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    spare_tokens: int,
    eos: tuple[int, ...],
    scheduling: Scheduling,
) -> None:
    budget = max_num_seqs + spare_tokens
    core, executor = make_core(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=budget,
        max_context=24,
        eos=eos,
        scheduling=scheduling,
    )
    collected = Collected()
    aborted: set[str] = set()
    step = 0
    while core.has_work() or any(arrival.step >= step for arrival in load):
        for index, arrival in enumerate(load):
            if arrival.step == step:
                core.submit(Submit(str(index), arrival.prompt, arrival.params))
            if arrival.abort_after is not None and step == arrival.step + arrival.abort_after:
                core.abort(str(index))
                core.check()
                aborted.add(str(index))
        collected.add(core.step().outputs)
        core.check()
        step += 1
        assert step < 3000, "the engine does not come to an end"
    assert all(tokens <= budget and max(sequences, rows) <= max_num_seqs for tokens, sequences, rows in executor.steps)
    assert core.step().stats.blocks_used == 0
    capacity = num_blocks * block_size
    for index, arrival in enumerate(load):
        id = str(index)
        tokens = collected.tokens.get(id, [])
        if len(arrival.prompt) > min(capacity, 24 - (arrival.params.max_tokens > 0)):
            assert collected.last[id].finish_reason == "abort"
            assert collected.last[id].error
            assert tokens == []
            continue
        alone = solo(arrival.prompt, arrival.params, vocab_size=VOCAB, max_context=24, capacity=capacity, stop_ids=frozenset(eos))
        scores, scores_alone = collected.scores.get(id, []), solo_scores(arrival.prompt, arrival.params)
        routes, routes_alone = collected.routes.get(id, []), solo_routes(arrival.prompt, alone, arrival.params)
        if id in aborted and collected.last.get(id, Output(id, [])).finish_reason is None:
            assert tokens == alone[: len(tokens)]
            assert scores == scores_alone[: len(scores)]
            assert routes == routes_alone[: len(routes)]
            continue
        assert tokens == alone
        assert scores == scores_alone
        assert routes == routes_alone
        assert collected.last[id].finish_reason == ("stop" if alone and alone[-1] in eos else "length")


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10),
    seed=st.integers(0, 9),
    cut=st.integers(0, 12),
    scored=st.integers(0, 9),
    penalty=st.sampled_from([1.0, 1.5]),
    routed_from=st.sampled_from([None, 0, 3]),
)
def test_a_resumed_sequence_goes_on_as_if_nothing_had_happened(
    prompt: list[int], seed: int, cut: int, scored: int, penalty: float, routed_from: int | None
) -> None:
    params = SamplingParams(
        max_tokens=12,
        seed=seed,
        repetition_penalty=penalty,
        presence_penalty=penalty - 1.0,
        prompt_logprobs=1 if scored else None,
        routed_from=routed_from,
    )
    alone, scores = solo(prompt, params), solo_scores(prompt, params)
    told = min(scored, len(scores)) if cut == 0 else len(scores)
    routes, routed = solo_routes(prompt, alone, params), len(solo_routes(prompt, alone[:cut], params)) if cut else 0
    core, _ = make_core(max_num_seqs=3)
    core.submit(Submit("before", prompt, params))
    run(core)
    core.submit(Submit("a", prompt, params, generated=alone[:cut], scored=told, routed=routed))
    collected = run(core)
    assert collected.tokens["a"] == alone[cut:]
    assert collected.scores["a"] == scores[told:]
    assert collected.routes["a"] == routes[routed:]
    assert collected.last["a"].finish_reason == "length"


def test_a_scored_prompt_leaves_every_other_sequence_its_row() -> None:
    core, executor = make_core(max_num_seqs=4, max_batch_tokens=16)
    core.submit(Submit("decodes", [1], greedy(9)))
    core.step()
    core.submit(Submit("scored", list(range(12)), SamplingParams(max_tokens=1, prompt_logprobs=0)))
    core.submit(Submit("short", [5, 6], greedy(2)))
    assert {output.id for output in core.step().outputs} == {"decodes", "scored", "short"}
    assert executor.steps[-1] == (1 + 2 + 2, 3, 4)
    run(core)
    assert max(rows for _, _, rows in executor.steps) == 4


def test_prompts_that_are_scored_share_the_rows() -> None:
    core, _ = make_core(max_num_seqs=8, max_batch_tokens=64)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    core.submit(Submit("long", list(range(30)), params))
    core.submit(Submit("short", [9, 8, 7, 6], params))
    told = {output.id: len(output.prompt_logprobs) for output in core.step().outputs if output.finish_reason is None}
    assert told == {"long": 4, "short": 3}
    collected = run(core)
    assert len(collected.scores["long"]) == 29 - 4


def test_a_prefix_in_the_cache_is_scored_too() -> None:
    core, _ = make_core()
    prompt = list(range(20))
    core.submit(Submit("before", prompt, greedy()))
    run(core)
    params = SamplingParams(max_tokens=0, prompt_logprobs=3)
    core.submit(Submit("scored", prompt, params))
    collected = run(core)
    assert collected.scores["scored"] == solo_scores(prompt, params)
    assert collected.last["scored"].cached_tokens == 0
    core.submit(Submit("after", prompt, greedy()))
    assert run(core).last["after"].cached_tokens == 16


def test_what_is_found_in_the_cache_has_its_experts_told_too() -> None:
    core, executor = make_core()
    prompt = list(range(20))
    core.submit(Submit("before", prompt, greedy()))
    run(core)
    computed = sum(tokens for tokens, _, _ in executor.steps)
    params = SamplingParams(max_tokens=3, temperature=0.0, routed_from=0)
    core.submit(Submit("routed", prompt, params))
    collected = run(core)
    assert collected.routes["routed"] == solo_routes(prompt, collected.tokens["routed"], params)
    assert collected.last["routed"].cached_tokens == 0
    assert sum(tokens for tokens, _, _ in executor.steps) - computed == 20 + 2
    later = SamplingParams(max_tokens=3, temperature=0.0, routed_from=10)
    core.submit(Submit("later", prompt, later))
    collected = run(core)
    assert collected.routes["later"] == solo_routes(prompt, collected.tokens["later"], later)
    assert collected.last["later"].cached_tokens == 8, "the whole blocks before the tenth token"


def test_who_gave_way_is_told_the_rest_of_its_experts() -> None:
    core, _ = make_core(num_blocks=8, block_size=2, max_context=16)
    params = SamplingParams(max_tokens=8, temperature=0.0, routed_from=0)
    prompts = {"first": [1, 2, 3, 4, 5], "second": [6, 7, 8, 9]}
    for id, prompt in prompts.items():
        core.submit(Submit(id, prompt, params))
    collected = run(core)
    assert collected.last, "nothing was computed"
    assert core.report().stats.preemptions_total > 0
    for id, prompt in prompts.items():
        assert collected.routes[id] == solo_routes(prompt, collected.tokens[id], params)


def test_decoding_goes_on_beside_a_long_prompt_in_chunks() -> None:
    core, executor = make_core(max_num_seqs=2, max_batch_tokens=4)
    core.submit(Submit("short", [1], greedy(10)))
    core.step()
    core.submit(Submit("long", list(range(9)), greedy(2)))
    produced = [[output.id for output in core.step().outputs] for _ in range(3)]
    assert produced == [["short"], ["short"], ["short", "long"]]
    assert [step[:2] for step in executor.steps[1:]] == [(4, 2), (4, 2), (4, 2)]


@pytest.mark.parametrize("scheduling", ["fair", "fcfs"])
def test_first_come_first_served_where_no_more_fit(scheduling: Scheduling) -> None:
    core, _ = make_core(max_num_seqs=1, scheduling=scheduling)
    order = []
    for id in "abc":
        core.submit(Submit(id, [1, 2], greedy(2)))
    while core.has_work():
        order += [output.id for output in core.step().outputs]
    assert order == ["a", "a", "b", "b", "c", "c"]


def steps_to_first_tokens(core: EngineCore) -> dict[str, int]:
    """After how many steps each sequence had its first token."""
    found: dict[str, int] = {}
    step = 0
    while core.has_work():
        step += 1
        for output in core.step().outputs:
            found.setdefault(output.id, step)
    return found


def test_a_short_prompt_waits_for_no_long_one() -> None:
    """Nor does a middling one wait for all of them: the least left to compute comes first."""
    waited = []
    policies: tuple[Scheduling, ...] = ("fair", "fcfs")
    for scheduling in policies:
        core, executor = make_core(num_blocks=1000, max_num_seqs=16, max_batch_tokens=16, max_context=200, scheduling=scheduling)
        for index in range(10):
            core.submit(Submit(f"long{index}", [index] * 100, greedy(1)))
        core.step()
        core.submit(Submit("middling", [20] * 30, greedy(1)))
        core.submit(Submit("short", [21] * 5, greedy(1)))
        steps = steps_to_first_tokens(core)
        waited.append((steps["short"], steps["middling"], max(steps.values())))
        assert [tokens for tokens, *_ in executor.steps[:-1]] == [16] * (len(executor.steps) - 1), "no step is smaller for it"
    assert waited == [(1, 5, 64), (64, 64, 64)]


def test_the_oldest_prompt_gets_half_of_every_step() -> None:
    core, _ = make_core(num_blocks=1000, max_num_seqs=16, max_batch_tokens=16, max_context=200)
    core.submit(Submit("long", [1] * 100, greedy(1)))
    core.step()
    steps, first = 1, None
    while first is None:
        for index in range(4):
            core.submit(Submit(f"short{steps}.{index}", [2 + index, steps % VOCAB] * 2, greedy(1)))
        steps += 1
        first = next((output for output in core.step().outputs if output.id == "long"), None)
    assert steps == 1 + (100 - 16 + 7) // 8


def test_who_waits_for_a_prefix_that_is_being_computed_is_overtaken() -> None:
    core, _ = make_core(num_blocks=100, block_size=4, max_batch_tokens=8)
    for id in "ab":
        core.submit(Submit(id, list(range(30)), greedy(2)))
    core.submit(Submit("c", [9, 9], greedy(2)))
    assert [output.id for output in core.step().outputs] == ["c"]
    collected = run(core)
    assert collected.last["b"].cached_tokens == 28
    assert collected.tokens["b"] == collected.tokens["a"] == solo(list(range(30)), greedy(2))


def test_a_large_request_at_the_head_is_not_overtaken_for_ever() -> None:
    core, _ = make_core(num_blocks=8, block_size=4, max_num_seqs=4)
    core.submit(Submit("first", [1] * 8, greedy(8)))
    core.step()
    core.submit(Submit("large", [2] * 28, greedy(2)))
    for index in range(20):
        core.submit(Submit(f"small{index}", [3, index], greedy(4)))
    finished = []
    while core.has_work():
        finished += [output.id for output in core.step().outputs if output.finish_reason]
    assert finished[:2] == ["first", "large"]


def test_the_youngest_is_preempted_and_still_gets_its_tokens() -> None:
    core, _ = make_core(num_blocks=6, block_size=2, max_num_seqs=3)
    asked = {"a": [1, 2, 3], "b": [4, 5], "c": [6]}
    for id, prompt in asked.items():
        core.submit(Submit(id, prompt, SamplingParams(max_tokens=8, seed=7)))
    collected = Collected()
    finished = []
    preemptions = 0
    while core.has_work():
        done = core.step()
        core.check()
        preemptions = done.stats.preemptions_total
        collected.add(done.outputs)
        finished += [output.id for output in done.outputs if output.finish_reason]
    assert preemptions > 0
    assert finished[0] == "a"
    for id, prompt in asked.items():
        assert collected.tokens[id] == solo(prompt, SamplingParams(max_tokens=8, seed=7))


def test_a_preempted_sequence_comes_back_before_those_that_arrived_later() -> None:
    core, _ = make_core(num_blocks=6, block_size=2, max_num_seqs=2)
    for index, id in enumerate("abc"):
        core.submit(Submit(id, [index] * 3, greedy(8)))
    finished = []
    preemptions = 0
    while core.has_work():
        done = core.step()
        preemptions = done.stats.preemptions_total
        finished += [output.id for output in done.outputs if output.finish_reason]
    assert preemptions > 0
    assert finished == ["a", "b", "c"]


def test_alone_in_a_full_cache_a_sequence_ends_with_length() -> None:
    core, _ = make_core(num_blocks=2, block_size=4)
    core.submit(Submit("a", [1, 2, 3], greedy(30)))
    collected = run(core)
    assert len(collected.tokens["a"]) == 2 * 4 - 3 + 1
    assert collected.last["a"].finish_reason == "length"
    assert collected.last["a"].error is None


def test_a_prompt_that_fills_the_cache_still_gets_one_token() -> None:
    core, _ = make_core(num_blocks=2, block_size=4)
    core.submit(Submit("a", list(range(8)), greedy(5)))
    assert run(core).tokens["a"] == solo(list(range(8)), greedy(1))


def test_the_context_ends_a_sequence() -> None:
    core, _ = make_core(max_context=10)
    core.submit(Submit("a", [1] * 7, greedy(30)))
    collected = run(core)
    assert len(collected.tokens["a"]) == 3
    assert collected.last["a"].finish_reason == "length"


def test_a_common_prefix_is_computed_once() -> None:
    core, executor = make_core(block_size=4)
    system = list(range(13))
    core.submit(Submit("a", [*system, 20], greedy(2)))
    first = run(core)
    assert first.last["a"].cached_tokens == 0
    before = sum(tokens for tokens, *_ in executor.steps)
    core.submit(Submit("b", [*system, 21, 22], greedy(1)))
    done = core.step()
    assert done.outputs[0].cached_tokens == 12
    assert done.stats.step_tokens == 3
    assert sum(tokens for tokens, *_ in executor.steps) == before + 3
    assert done.outputs[0].tokens == solo([*system, 21, 22], greedy(1))
    assert (done.stats.prefix_hit_tokens_total, done.stats.prefix_query_tokens_total) == (12, 14 + 15)


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    core, executor = make_core(block_size=4, max_batch_tokens=8)
    prompt = list(range(18))
    params = SamplingParams(max_tokens=1, seed=3)
    for id in "abc":
        core.submit(Submit(id, prompt, params))
    collected = run(core)
    assert [step[:2] for step in executor.steps] == [(8, 1), (8, 1), (2 + 2 + 2, 3)]
    assert {id: collected.last[id].cached_tokens for id in "abc"} == {"a": 0, "b": 16, "c": 16}
    assert all(tokens == solo(prompt, params) for tokens in collected.tokens.values())


def test_who_waits_for_a_prefix_computes_it_when_its_owner_is_gone() -> None:
    core, _ = make_core(block_size=4, max_batch_tokens=8)
    prompt = list(range(30))
    for id in "ab":
        core.submit(Submit(id, prompt, greedy(3)))
    assert core.step().stats.running == 1
    core.abort("a")
    collected = run(core)
    assert collected.tokens["b"] == solo(prompt, greedy(3))
    assert collected.last["b"].cached_tokens == 8


@pytest.mark.parametrize("length", [1, 4, 7, 8, 9, 16])
def test_the_same_prompt_again_computes_at_least_its_last_token(length: int) -> None:
    core, _ = make_core(block_size=4)
    prompt = list(range(length))
    for id, cached in (("a", 0), ("b", (length - 1) // 4 * 4)):
        core.submit(Submit(id, prompt, greedy(3)))
        collected = run(core)
        assert collected.tokens[id] == solo(prompt, greedy(3))
        assert collected.last[id].cached_tokens == cached


def test_the_next_turn_of_a_chat_reuses_the_answer() -> None:
    core, _ = make_core(block_size=4)
    core.submit(Submit("a", [1, 2, 3, 4, 5], greedy(8)))
    answer = run(core).tokens["a"]
    core.submit(Submit("b", [1, 2, 3, 4, 5, *answer, 6], greedy(1)))
    assert run(core).last["b"].cached_tokens == 12


def test_abort_frees_blocks_at_once_and_says_so() -> None:
    core, _ = make_core()
    core.submit(Submit("a", [1] * 9, greedy(20)))
    core.submit(Submit("b", [2] * 9, greedy(20)))
    used = core.step().stats.blocks_used
    assert used == 6
    core.abort("a")
    core.check()
    assert core.step().stats.blocks_used == 3
    core.abort("b")
    assert core.has_work(), "the new state has not been told"
    done = core.step()
    assert done.outputs == []
    assert (done.stats.blocks_used, done.stats.running, done.stats.step_tokens) == (0, 0, 0)
    assert not core.has_work()
    core.abort("never seen")
    assert not core.has_work()


def test_statistics_add_up() -> None:
    core, executor = make_core(max_num_seqs=2)
    for id in "abc":
        core.submit(Submit(id, [1, 2, 3], greedy(4)))
    done = core.step()
    assert (done.stats.running, done.stats.waiting) == (2, 1)
    while core.has_work():
        done = core.step()
    stats = done.stats
    assert stats.prompt_tokens_total == 9
    assert stats.generation_tokens_total == 12
    assert stats.steps_total == len(executor.steps)
    assert (stats.running, stats.waiting, stats.blocks_used, stats.blocks_total) == (0, 0, 0, 64)
    assert stats.jit_compilations_total == 0


def test_a_prompt_that_goes_on_asks_for_no_logits() -> None:
    """Rows of logits are those of chunks that reach their sequence's end; a step without any computes one row for nobody."""
    core, executor = make_core(max_batch_tokens=8, scheduling="fcfs")
    core.submit(Submit("long", list(range(20)), greedy(2)))
    core.submit(Submit("short", [1, 2], greedy(2)))
    while core.has_work():
        core.step()
    assert [(tokens, rows) for tokens, _, rows in executor.steps] == [(8, 1), (8, 1), (6, 2), (2, 2)]


def test_sequences_of_different_roots_share_no_blocks() -> None:
    """The same tokens under another adapter or behind another picture have other keys and values."""
    caches = Caches(tiny_manifest().caches, {"full": 16})
    scheduler = Scheduler(caches, max_num_seqs=4, max_batch_tokens=64)
    prompt = list(range(9))
    roots = (ROOT_DIGEST, b"a" * 16, b"a" * 16, b"b" * 16)
    found = []
    for index, root in enumerate(roots):
        sequence = Sequence(
            id=str(index),
            prompt=prompt,
            generated=[],
            params=greedy(),
            stop_ids=frozenset(),
            max_length=16,
            block_size=4,
            held=caches.hold_nothing(16),
            root=root,
        )
        scheduler.add(sequence)
        for chunk in scheduler.schedule():
            scheduler.publish(chunk)
        found.append(sequence.cached_tokens)
        scheduler.remove(sequence)
    assert found == [0, 0, 8, 0]
