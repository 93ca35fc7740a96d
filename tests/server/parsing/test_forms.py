"""Every wire form, however its text is split or cut off."""

import json
from collections.abc import Sequence

import pytest
from call_examples import ANSWERS, CITY, MORE, PLAIN, STRINGS_ARE_QUOTED, TOOLS
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.server.parsing.names import FormNames
from engine.server.parsing.parsing import parsing_of
from engine.server.parsing.pieces import CallArguments, CallStart, Message, Piece, call_ids, joined
from engine.server.parsing.table import REASONING_FORMS, TOOL_FORMS

FORMS = sorted(TOOL_FORMS)
SILENT = ("cohere", "gpt_oss", "step3")
"""Forms with marks around plain text, too."""
THOUGHTS = {
    "think": "<think>\nHm, <b>.\n</think>\n\nSo.",
    "deepseek_r1": "Hm, <b>.</think>So.",
    "mistral": "[THINK]Hm, <b>.[/THINK]So.",
    "seed_oss": "<seed:think>Hm, <b>.</seed:think>So.",
    "kimi": "◁think▷Hm, <b>.◁/think▷So.",
    "hunyuan": "<think>\nHm, <b>.\n</think>\n<answer>\nSo.\n</answer>",
    "granite": "Here is my thought process: Hm, <b>.\n\nHere is my response: So.",
    "cohere": "<|START_THINKING|>Hm, <b>.<|END_THINKING|><|START_RESPONSE|>So.<|END_RESPONSE|>",
    "gemma4": "<|channel>thought\nHm, <b>.\n<channel|>So.",
    "gpt_oss": "<|channel|>analysis<|message|>Hm, <b>.<|end|><|start|>assistant<|channel|>final<|message|>So.",
}


def read(
    parts: Sequence[str], form: str | None = None, reasoning: str | None = None, prompt: str = "", most_calls: int | None = None
) -> list[Piece]:
    parsing = parsing_of(FormNames(form, reasoning), TOOLS if form else {}, prompt, most_calls=most_calls)
    assert parsing is not None
    parser = parsing.begin(call_ids("s"))
    pieces = [piece for part in parts for piece in parser.push(part)]
    return joined([*pieces, *parser.end()])


def split(text: str, sizes: Sequence[int]) -> list[str]:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return [*parts, text[at:]]


def said(pieces: Sequence[Piece]) -> str:
    """All that was said, in its order, without the space that belongs to marks."""
    message = Message.of(pieces)
    return message.content + message.reasoning + "".join(call.name + call.arguments for call in message.calls)


@pytest.mark.parametrize("form", FORMS)
def test_two_calls_and_text(form: str) -> None:
    message = Message.of(read([ANSWERS[form]], form))
    assert message.content == "Sure."
    assert [call.name for call in message.calls] == ["get_weather", "now"]
    assert [json.loads(call.arguments) for call in message.calls] == [CITY if form in STRINGS_ARE_QUOTED else PLAIN, {}]
    if form == "kimi_k2":
        assert [call.id for call in message.calls] == ["functions.get_weather:0", "functions.now:1"]


@pytest.mark.parametrize(("form", "text"), [(form, text) for form, texts in MORE.items() for text in texts])
def test_other_ways_of_writing_a_call(form: str, text: str) -> None:
    (call,) = Message.of(read([text], form)).calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Rio"})
    assert Message.of(read(list(text), form)) == Message.of(read([text], form))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_splits_change_nothing(form: str, data: st.DataObject) -> None:
    text = ANSWERS[form]
    cut = data.draw(st.integers(0, len(text)) | st.just(len(text)))
    sizes = data.draw(st.lists(st.integers(0, 12), max_size=60) | st.just([1] * len(text)))
    assert read(split(text[:cut], sizes), form) == read([text[:cut]], form)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_cut_off_is_not_lost_and_nothing_is_made_up(form: str) -> None:
    """At every place: arguments are those of the whole answer or no JSON, and letters and digits are all there."""
    text = ANSWERS[form]
    whole = Message.of(read([text], form))
    for cut in range(len(text)):
        message = Message.of(read([text[:cut]], form))
        for call, complete in zip(message.calls, whole.calls, strict=False):
            assert call.name == complete.name
            assert call.arguments in (complete.arguments, "") or not is_json(call.arguments)
        if not message.calls:
            assert message.content == text[:cut] or form in SILENT


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_prose_with_marks_in_it_comes_back_whole(form: str, data: st.DataObject) -> None:
    """Openers that no call follows; the first of them ends the reading of others if it is taken for one."""
    openers = [opener for each in TOOL_FORMS[form] for opener in each.openers if form not in SILENT]
    words = st.sampled_from(
        [*openers, "a mark ", "\n", " is `", "` .", "{", "[1]", '{"a": 1}', "```python\nx = {}\n```\n", "now", "<", "("]
    )
    text = "".join(data.draw(st.lists(words, max_size=12)))
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=40))
    pieces = read(split(text, sizes), form)
    if not Message.of(pieces).calls:
        assert said(pieces) == text
    assert pieces == read([text], form)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(form: str, text: str) -> None:
    assert said(read(list(text), form)) == text


def test_a_mark_in_prose_does_not_swallow_what_follows() -> None:
    text = "Use the <tool_call> tag. It holds JSON.\n"
    parsing = parsing_of(FormNames("hermes"), TOOLS, "")
    assert parsing is not None
    parser = parsing.begin(call_ids("s"))
    shown = [said(parser.push(character)) for character in text]
    assert "".join(shown[:30]).startswith("Use the <tool_call> tag. It"), "it is shown as it comes"


@pytest.mark.parametrize(
    ("form", "before", "parts"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {', ['"ci', 'ty": "R', 'io"']),
        ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\n", ["Ri", 'o "', "x"]),
        ("gemma4", '<|tool_call>call:get_weather{city:<|"|>', ["Ri", 'o "', "x"]),
    ],
)
def test_arguments_come_as_they_are_written(form: str, before: str, parts: list[str]) -> None:
    parsing = parsing_of(FormNames(form), TOOLS, "")
    assert parsing is not None
    parser = parsing.begin(call_ids("s"))
    assert isinstance(parser.push(before)[0], CallStart)
    for part in parts:
        pieces = parser.push(part)
        assert all(isinstance(piece, CallArguments) for piece in pieces)
        assert "".join(piece.text for piece in pieces if isinstance(piece, CallArguments)).replace("\\", "") == part


def test_bare_json_is_a_call_only_of_what_was_offered() -> None:
    call = '{"name": "get_weather", "arguments": {"city": "Rio"}}'
    assert Message.of(read([call], "hermes")).calls
    for text in (call.replace("get_weather", "other"), '{"name": "get_weather"}', '{"city": "Rio"}', f"As in {call}"):
        assert said(read([text], "hermes")) == text
        assert not Message.of(read([text], "hermes")).calls


def test_no_more_calls_than_wanted() -> None:
    message = Message.of(read([ANSWERS["hermes"]], "hermes", most_calls=1))
    assert ([call.name for call in message.calls], message.content) == (["get_weather"], "Sure.")


@pytest.mark.parametrize("form", sorted(REASONING_FORMS))
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=40))
def test_reasoning(form: str, sizes: list[int]) -> None:
    message = Message.of(read(split(THOUGHTS[form], sizes), None, form))
    assert (message.reasoning.strip(), message.content) == ("Hm, <b>.", "So.")
    call = ANSWERS["hermes"]
    with_call = Message.of(read(split(THOUGHTS[form].replace("So.", call), sizes), "hermes", form))
    if form != "gpt_oss":
        assert (with_call.reasoning.strip(), with_call.content, len(with_call.calls)) == ("Hm, <b>.", "Sure.", 2)


def test_reasoning_that_the_prompt_has_begun_or_ended() -> None:
    begun = Message.of(read(["Hm.\n", "</think>\n\nSo."], None, "think", prompt="<|assistant|><think>\n"))
    assert (begun.reasoning, begun.content) == ("Hm.", "So.")
    again = Message.of(read(["<think>Hm.\n", "</think>\n\nSo."], None, "think", prompt="<|assistant|><think>\n"))
    assert (again.reasoning, again.content) == ("Hm.", "So.")
    for form in ("think", "deepseek_r1"):
        off = Message.of(read(["So."], None, form, prompt="<think>\n\n</think>\n\n"))
        assert (off.reasoning, off.content) == ("", "So.")
    prose = "The tag <think> is text here, and </think> too."
    assert said(read([prose], None, "think")) == prose
    cut = Message.of(read(["<think>Hm"], None, "think"))
    assert (cut.reasoning, cut.content) == ("Hm", "")


def test_a_call_ends_reasoning_where_it_has_a_mark_of_its_own() -> None:
    text = "<think>Hm." + ANSWERS["kimi_k2"].removeprefix("Sure.")
    message = Message.of(read(list(text), "kimi_k2", "think"))
    assert (message.reasoning, message.content, len(message.calls)) == ("Hm.", "", 2)
