"""Grammars of calls: what they allow is read back as the call that they ask for."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from toy_tokenizer import END, write_toy_tokenizer

from engine.server.parsing.names import FormNames
from engine.server.parsing.parsing import FormsParsing, parsing_of
from engine.server.parsing.pieces import Message, call_ids
from engine.server.parsing.table import TOOL_FORMS

SPACE = "[ ]?"
FUNCTIONS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "unit": {"type": "string", "enum": ["C", "F"]},
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        },
        "required": ["city", "place"],
    },
    "now": {"type": "object", "properties": {}},
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> LLTokenizer:
    folder = tmp_path_factory.mktemp("toy")
    tokenizer = write_toy_tokenizer(folder)
    return LLTokenizer((folder / "tokenizer" / "tokenizer.json").read_text(), eos_token=[tokenizer.token_to_id(END) or 0])


def parsing(form: str, reasoning: str | None = None, prompt: str = "", most_calls: int | None = None) -> FormsParsing:
    found = parsing_of(FormNames(form, reasoning), FUNCTIONS, prompt, most_calls=most_calls)
    assert found is not None
    return found


def allows(vocabulary: LLTokenizer, grammar: str | None, text: str) -> bool:
    """Whether the text may be a whole answer."""
    assert grammar is not None
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error() + grammar
    tokens = vocabulary.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def sampled(vocabulary: LLTokenizer, grammar: str | None, seed: int) -> str:
    """A text that the grammar allows, found by taking tokens at random from what it allows next."""
    assert grammar is not None
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error() + grammar
    source = random.Random(seed)
    tokens: list[int] = []
    wanted = [token for token in range(vocabulary.vocab_size) if vocabulary.decode_str([token]) in set('"}])>,\nRio 1x')]
    for step in range(3000):
        if matcher.is_accepting() and step > 40:
            return vocabulary.decode_str(tokens)
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(vocabulary.vocab_size) if mask[token // 8] >> token % 8 & 1]
        allowed = [token for token in allowed if vocabulary.decode_str([token])] or allowed
        plain = [token for token in allowed if token in wanted]
        token = source.choice(plain or allowed)
        if matcher.is_stopped() or token == vocabulary.eos_token:
            return vocabulary.decode_str(tokens)
        assert matcher.consume_token(token), matcher.get_error()
        tokens.append(token)
    return ""


@pytest.mark.parametrize("form", sorted(TOOL_FORMS))
def test_what_is_allowed_is_a_call(vocabulary: LLTokenizer, form: str) -> None:
    one = parsing(form, most_calls=1)
    grammar = one.grammar({}, SPACE, must_call=True)
    assert not allows(vocabulary, grammar, "Sure.")
    complete = 0
    for seed in range(4):
        text = sampled(vocabulary, grammar, seed)
        if not text:
            continue
        complete += 1
        parser = one.begin(call_ids("s"))
        message = Message.of([*parser.push(text), *parser.end()])
        (call,) = message.calls
        arguments = json.loads(call.arguments)
        assert call.name in FUNCTIONS
        assert not message.content.strip()
        if call.name == "get_weather":
            assert isinstance(arguments["city"], str)
            assert isinstance(arguments["place"]["x"], int | float)
            assert arguments.get("unit", "C") in ("C", "F")
    assert complete


def test_reasoning_may_stand_before(vocabulary: LLTokenizer) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    begun = parsing("hermes", "think", "<think>\n").grammar({}, SPACE, must_call=True)
    may = parsing("hermes", "think").grammar({}, SPACE, must_call=True)
    assert allows(vocabulary, begun, f"Hm.\n</think>\n\n{call}")
    assert not allows(vocabulary, begun, call)
    assert allows(vocabulary, may, call)
    assert allows(vocabulary, may, f"<think>\nHm.\n</think>\n\n{call}\n{call}")
    assert not allows(vocabulary, may, f"<think>\nHm.\n</think>\n\nSo. {call}")


def test_strict_calls_among_text(vocabulary: LLTokenizer) -> None:
    for form in ("hermes", "qwen3_coder", "kimi_k2", "gemma4"):
        grammar = parsing(form).grammar({}, SPACE, strict=True)
        assert allows(vocabulary, grammar, "Sure. {} [x]")
    grammar = parsing("hermes").grammar({}, SPACE, strict=True)
    good, bad = '{"name": "now", "arguments": {}}', '{"name": "now", "arguments": {"x": 1}}'
    assert allows(vocabulary, grammar, f"Sure.\n<tool_call>\n{good}\n</tool_call>")
    assert not allows(vocabulary, grammar, '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>')
    assert allows(vocabulary, grammar, f"As in {bad}.")


@pytest.mark.parametrize("form", ["llama3_json", "xlam"])
def test_strict_calls_without_marks_are_held_from_the_name_on(vocabulary: LLTokenizer, form: str) -> None:
    def strictly(text: str) -> bool:
        return allows(vocabulary, grammar, text)

    grammar = parsing(form).grammar({}, SPACE, strict=True)
    good = '{"name": "get_weather", "parameters": {"city": "R/o", "place": {"x": 1}}}'
    bad = '{"name": "get_weather", "parameters": {"city": 1, "place": {"x": 1}}}'
    for text in ("", "Sure. {} [x]", '{"name": "Ann", "parameters": 3}', '[{"name": "other", "arguments": {}}]', '{"city": "get_weather"}'):
        assert strictly(text)
    for before, between, after in (("", "; ", ""), ("Sure.\n", "\n", "\nDone."), ("[", ", ", "]"), ('{"function": ', " and ", "}")):
        assert strictly(before + good + between + good + after)
        assert not strictly(before + bad)
        assert not strictly(before + good + between + bad)
    for odd in ('{ "name":"get_weather" ,"arguments":', '{"type": "function", "id": "a", "name": "get_weather", "parameters": '):
        assert strictly(odd + '{"city": "R", "place": {"x": 1}}}')
        assert not strictly(odd + '{"city": "R", "place": {"x": "1"}}}')


def test_strict_calls_without_marks_may_have_odd_names_and_the_tokens_of_other_forms(tmp_path: Path) -> None:
    tokenizer = write_toy_tokenizer(tmp_path)
    tokenizer.add_special_tokens(["<|python_tag|>"])
    vocabulary = LLTokenizer(tokenizer.to_str(), eos_token=[tokenizer.token_to_id(END) or 0])
    for name in ("get-weather", "a.b/c d", 'say "hi" <now>', "größe", "f(x)*"):
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        parsed = parsing_of(FormNames("llama3_json"), {name: schema}, "")
        assert parsed is not None
        grammar = parsed.grammar({"<|python_tag|>": tokenizer.token_to_id("<|python_tag|>") or 0}, SPACE, strict=True)
        for before in ("", "<|python_tag|>", "Sure.\n<|python_tag|>"):
            for value, holds in (("1", True), ('"1"', False)):
                call = f'{before}{{"name": {json.dumps(name, ensure_ascii=False)}, "parameters": {{"a": {value}}}}}'
                matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar or ""), log_level=0)
                assert not matcher.is_error(), matcher.get_error()
                tokens = tokenizer.encode(call).ids
                assert (matcher.try_consume_tokens(tokens) == len(tokens)) == holds


def test_marks_that_are_special_tokens_are_asked_for_as_such(tmp_path: Path) -> None:
    """Spelled out in other tokens they would not be the same to the model."""
    marks = ["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"]
    tokenizer = write_toy_tokenizer(tmp_path)
    tokenizer.add_special_tokens([*marks, "<|tool_call_argument_begin|>"])
    special = {text: tokenizer.token_to_id(text) or 0 for text in (*marks, "<|tool_call_argument_begin|>")}
    vocabulary = LLTokenizer(tokenizer.to_str(), eos_token=[tokenizer.token_to_id(END) or 0])
    grammar = parsing("kimi_k2", most_calls=1).grammar(special, SPACE, must_call=True)
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar or ""), log_level=0)
    text = "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    tokens = tokenizer.encode(text + "<|tool_calls_section_end|>").ids
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    assert matcher.is_accepting()
    spelled = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar or ""), log_level=0)
    assert spelled.try_consume_tokens(vocabulary.tokenize_str("<|tool")) == 0


def test_reasoning_ends_when_its_budget_is_spent(tmp_path: Path) -> None:
    tokenizer = write_toy_tokenizer(tmp_path)
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    added = {text: tokenizer.token_to_id(text) or 0 for text in ("<think>", "</think>", "<tool_call>", "</tool_call>")}
    vocabulary = LLTokenizer(tokenizer.to_str(), eos_token=[tokenizer.token_to_id(END) or 0])

    def follows(grammar: str | None, text: str) -> bool:
        matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar or ""), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        tokens = tokenizer.encode(text).ids
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    begun, may = parsing("hermes", "think", "<think>\n"), parsing("hermes", "think")
    assert begun.is_bounded(added)
    assert not begun.is_bounded({})
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for budget in (0, 4):
        free = begun.grammar(added, SPACE, budget=budget)
        assert follows(free, "xyz"[:budget] + f"</think>So <think>wxyz. {call}")
        assert not follows(free, "wxyzw</think>So")
        either = may.grammar(added, SPACE, budget=budget)
        assert follows(either, f"So. {call}")
        assert follows(either, "")
        assert follows(either, "<think>" + "wxyz"[:budget] + "</think>So.")
        assert not follows(either, "<think>wxyzw</think>So")
        calling = may.grammar(added, SPACE, must_call=True, budget=budget)
        assert follows(calling, "<think></think>" + call)
        assert not follows(calling, "<think>wxyzw</think>" + call)
