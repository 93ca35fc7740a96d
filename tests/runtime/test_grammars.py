"""Answers follow their grammars, and are the same whatever else is computed, whoever dies, and whether forced tokens are computed."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from fake_executor import FakeExecutor, solo, tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from pipelined import Pipelined
from tokenizers import Tokenizer
from toy_tokenizer import END, write_toy_tokenizer

from engine.options.runtime import RuntimeOptions
from engine.protocol import SamplingParams, Submit
from engine.runtime.core import EngineCore
from engine.runtime.process.grammar_compiler import Compiled, GrammarCompiler
from engine.runtime.sampling.grammar import Grammar

CONTEXT = 96
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-c]{1,5}$"},
        "ready": {"type": "boolean"},
        "parts": {"type": "array", "items": {"enum": ["abc", "true", 7]}, "maxItems": 3},
    },
    "required": ["name", "ready", "parts"],
    "additionalProperties": False,
}
JSON = LLMatcher.grammar_from_json_schema(SCHEMA, overrides={"whitespace_flexible": False})
WORDS = LLMatcher.grammar_from_regex("(abc|abd|null){2,6}z")


class Toy:
    """A vocabulary, and grammars compiled for it."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Tokenizer = write_toy_tokenizer(directory)
        self.vocab_size: int = self.tokenizer.get_vocab_size()
        self.end = self.tokenizer.encode(END).ids[0]
        self._compiled: SimpleQueue[Compiled] = SimpleQueue()
        self._compiler = GrammarCompiler(directory, vocab_size=self.vocab_size, eos_token_ids=[self.end], deliver=self._compiled.put)

    def compile(self, request: Submit) -> Compiled:
        self._compiler.compile(request)
        return self._compiled.get(timeout=60)

    def grammar(self, request: Submit) -> Grammar:
        grammar = self.compile(request).grammar
        assert grammar is not None
        return grammar

    def text(self, tokens: Sequence[int]) -> str:
        assert tokens[-1] == self.end
        text: str = self.tokenizer.decode(tokens[:-1])
        return text

    def alone(self, request: Submit) -> list[int]:
        """Its tokens, every one of them chosen by its logits."""
        grammar = self.grammar(request) if request.params.grammar else None
        return solo(
            request.prompt,
            request.params,
            vocab_size=self.vocab_size,
            max_context=CONTEXT,
            stop_ids=frozenset([self.end]),
            grammar=grammar,
        )

    def engine(self, **options: Any) -> Pipelined:
        executor = FakeExecutor(
            num_blocks=options.pop("num_blocks", 128), manifest=tiny_manifest(vocab_size=self.vocab_size, max_context=CONTEXT)
        )
        return Pipelined(EngineCore(executor, RuntimeOptions(**options), eos_token_ids=[self.end]))

    def submit(self, engine: Pipelined, request: Submit) -> None:
        engine.core.submit(request, self.grammar(request) if request.params.grammar else None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"))


def params(grammar: str | None, **others: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 80, "temperature": 1.0, "seed": 1, "grammar": grammar, **others})


def steps(engine: Pipelined) -> list[tuple[int, int, int]]:
    executor = engine.core._executor
    assert isinstance(executor, FakeExecutor)
    return executor.steps


@pytest.mark.parametrize("temperature", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_answers_follow_the_grammar_and_end_with_it(toy: Toy, temperature: float, seed: int) -> None:
    engine = toy.engine()
    for id, grammar in (("json", JSON), ("words", WORDS)):
        toy.submit(engine, Submit(id, [seed, 5], params(grammar, temperature=temperature, seed=seed)))
    engine.run()
    answer = json.loads(toy.text(engine.tokens["json"]))
    assert re.fullmatch("[a-c]{1,5}", answer["name"])
    assert isinstance(answer["ready"], bool)
    assert all(part in ("abc", "true", 7) for part in answer["parts"])
    assert re.fullmatch("(abc|abd|null){2,6}z", toy.text(engine.tokens["words"]))
    assert {output.finish_reason for output in engine.ended.values()} == {"stop"}


def test_forced_tokens_take_no_step_and_change_nothing(toy: Toy) -> None:
    request = Submit("a", [1, 2, 3], params(JSON))
    engine = toy.engine()
    toy.submit(engine, request)
    engine.run()
    assert engine.tokens["a"] == toy.alone(request)
    assert len(steps(engine)) < 0.7 * len(engine.tokens["a"])


def test_logprobs_come_with_every_token(toy: Toy) -> None:
    request = Submit("a", [1, 2, 3], params(JSON, logprobs=2))
    engine = toy.engine()
    toy.submit(engine, request)
    engine.run()
    assert engine.tokens["a"] == toy.alone(Submit("b", request.prompt, params(JSON)))
    assert len(steps(engine)) == len(engine.tokens["a"])


requests = st.tuples(
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
    st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 60),
        temperature=st.sampled_from([0.0, 0.9]),
        seed=st.integers(0, 5),
        top_k=st.sampled_from([0, 3]),
        top_p=st.sampled_from([1.0, 0.7]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        min_tokens=st.sampled_from([0, 40]),
        ignore_eos=st.booleans(),
        logprobs=st.sampled_from([None, 1]),
        grammar=st.sampled_from([None, JSON, WORDS]),
    ),
)


@settings(max_examples=60, deadline=None)
@given(
    load=st.lists(requests, min_size=1, max_size=5),
    num_blocks=st.integers(24, 60),
    max_num_seqs=st.integers(1, 4),
    spare_tokens=st.integers(0, 8),
    late=st.booleans(),
)
def test_whatever_is_beside_it(
    toy: Toy, load: list[tuple[list[int], SamplingParams]], num_blocks: int, max_num_seqs: int, spare_tokens: int, late: bool
) -> None:
    """Batches, chunks, preemption, steps planned ahead: tokens are those that each request gets alone."""
    engine = toy.engine(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_batch_tokens=max_num_seqs + spare_tokens)
    submits = [Submit(str(index), prompt, sampling) for index, (prompt, sampling) in enumerate(load)]
    for request in submits:
        toy.submit(engine, request)
    while engine.core.has_work() or engine.at_hand is not None:
        engine.begin()
        engine.plan_ahead()
        engine.compute()
        engine.finish(next_has_begun=late)
        engine.core.check()
    for request in submits:
        if not (request.params.ignore_eos and request.params.grammar is None):
            assert engine.tokens[request.id] == toy.alone(request)[: len(engine.tokens[request.id])]
        assert engine.ended[request.id].error is None
        if request.params.grammar and engine.ended[request.id].finish_reason == "stop":
            toy.text(engine.tokens[request.id])


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 3}])
def test_a_worker_that_takes_over_goes_on_the_same_way(toy: Toy, sampling: dict[str, Any]) -> None:
    request = Submit("a", [9, 8, 7], params(JSON, **sampling))
    whole = toy.alone(request)
    for known in range(len(whole)):
        engine = toy.engine()
        toy.submit(engine, Submit("a", request.prompt, request.params, generated=whole[:known]))
        engine.run()
        assert engine.tokens["a"] == whole[known:]


def test_where_the_grammar_ends_the_answer_does(toy: Toy) -> None:
    """Neither ignore_eos nor min_tokens make it go on."""
    request = Submit("a", [1], params(LLMatcher.grammar_from_regex("abc"), ignore_eos=True, min_tokens=20))
    engine = toy.engine()
    toy.submit(engine, request)
    engine.run()
    assert toy.text(engine.tokens["a"]) == "abc"


def test_a_stop_token_among_forced_ones_stops(toy: Toy) -> None:
    (comma,) = toy.tokenizer.encode(",").ids
    request = Submit("a", [1], params(LLMatcher.grammar_from_regex("xyz,xyz"), stop_token_ids=(comma,)))
    engine = toy.engine()
    toy.submit(engine, request)
    engine.run()
    assert toy.tokenizer.decode(engine.tokens["a"]) == "xyz,"
    assert engine.ended["a"].finish_reason == "stop"


def test_a_length_among_forced_tokens_ends_there(toy: Toy) -> None:
    request = Submit("a", [1], params(LLMatcher.grammar_from_regex("xyzxyzxyz"), max_tokens=4))
    engine = toy.engine()
    toy.submit(engine, request)
    engine.run()
    assert toy.tokenizer.decode(engine.tokens["a"]) == "xyzx"
    assert engine.ended["a"].finish_reason == "length"


def test_a_rule_that_leaves_nothing_ends_its_own_sequence_only(toy: Toy) -> None:
    (x,) = toy.tokenizer.encode("x").ids
    engine = toy.engine()
    toy.submit(engine, Submit("bad", [1], params(LLMatcher.grammar_from_regex("xyz"), stop_token_ids=(x,), min_tokens=2)))
    toy.submit(engine, Submit("good", [1], params(JSON)))
    engine.run()
    assert "leave no token" in (engine.ended["bad"].error or "")
    json.loads(toy.text(engine.tokens["good"]))


def test_a_grammar_that_fails_on_the_way_ends_its_own_sequence_only(toy: Toy) -> None:
    bad = Submit("bad", [1], params(JSON))
    grammar = toy.grammar(bad)
    grammar.accept(toy.end)  # which may not come first: the matcher is of no use any more
    engine = toy.engine()
    engine.core.submit(bad, grammar)
    toy.submit(engine, Submit("good", [1], params(JSON)))
    engine.run()
    assert "cannot be followed any further" in (engine.ended["bad"].error or "")
    json.loads(toy.text(engine.tokens["good"]))


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (LLMatcher.grammar_from_json_schema({"type": "string", "pattern": "["}), "regex parse error"),
        ("start: nothing", "nothing"),
        ("not a grammar at all", "grammar"),
        (LLMatcher.grammar_from_json_schema({"not": {}}), "not"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused_before_any_step(toy: Toy, grammar: str, said: str) -> None:
    compiled = toy.compile(Submit("a", [1], params(grammar)))
    assert compiled.grammar is None
    assert said in (compiled.error or "")
    assert "\nhint: " in (compiled.error or "")
    assert toy.compile(Submit("b", [1], params(JSON))).grammar is not None, "the next one is compiled"


def test_a_model_without_an_end_of_text_has_no_grammars(toy: Toy, tmp_path: Path) -> None:
    write_toy_tokenizer(tmp_path)
    compiled: SimpleQueue[Compiled] = SimpleQueue()
    compiler = GrammarCompiler(tmp_path, vocab_size=toy.vocab_size, eos_token_ids=[], deliver=compiled.put)
    compiler.prepare()
    compiler.compile(Submit("a", [1], params(JSON)))
    assert "no token that ends a text" in (compiled.get(timeout=60).error or "")


def test_logits_may_be_more_than_the_tokenizer_has_tokens(toy: Toy, tmp_path: Path) -> None:
    """Rows are padded in many models: what no text has is never chosen."""
    write_toy_tokenizer(tmp_path)
    compiled: SimpleQueue[Compiled] = SimpleQueue()
    compiler = GrammarCompiler(tmp_path, vocab_size=toy.vocab_size + 40, eos_token_ids=[toy.end], deliver=compiled.put)
    compiler.compile(Submit("a", [1], params(LLMatcher.grammar_from_regex("(?s:.*)"))))
    grammar = compiled.get(timeout=60).grammar
    assert grammar is not None
    assert grammar.denied.shape == (toy.vocab_size + 40,)
    assert grammar.denied[toy.vocab_size :].all()
    assert not grammar.denied[: toy.end].all()
