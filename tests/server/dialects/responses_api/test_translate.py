"""Requests of the Responses API as requests for chat completions."""

from typing import Any, get_type_hints

import msgspec
import pytest
from checkout import ROOT

from engine.errors import RequestError
from engine.server.dialects.decoding import decode_request
from engine.server.dialects.responses_api.items import items_of
from engine.server.dialects.responses_api.schema import WITHOUT_EFFECT, ResponsesRequest
from engine.server.dialects.responses_api.translate import as_chat
from engine.server.dialects.schemas import ChatRequest

UNREAD = [name for name, type_ in get_type_hints(ResponsesRequest).items() if type_ is Any]
"""Fields whose values no schema looks at."""
TOOL = {"type": "function", "name": "f", "description": "does it", "parameters": {"type": "object"}, "strict": True}


def translated(history: Any = (), **fields: Any) -> ChatRequest:
    request = decode_request(msgspec.json.encode({"input": "Hi", **fields}), ResponsesRequest)
    request.check()
    return as_chat(request, history, items_of(request.input))


def test_items_are_messages() -> None:
    items: list[Any] = [
        {"role": "developer", "content": "Be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What"}, {"type": "input_text", "text": " now?"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": None},
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "So", "annotations": []}]},
        {"type": "function_call", "id": "c", "call_id": "i", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "j", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "i", "output": "1"},
        {"type": "function_call_output", "call_id": "j", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "assistant", "content": "Both", "type": None, "id": None},
        {"role": "assistant", "content": "of them"},
        {"role": "user", "content": "And?"},
    ]
    calls = [
        {"id": "i", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "j", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    expected = [
        {"role": "system", "content": "Short"},
        {"role": "developer", "content": "Be kind"},
        {"role": "user", "content": "What now?"},
        {"role": "assistant", "reasoning_content": "hm", "content": "So", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "i", "content": "1"},
        {"role": "tool", "tool_call_id": "j", "content": "2"},
        {"role": "assistant", "content": "Both"},
        {"role": "assistant", "content": "of them"},
        {"role": "user", "content": "And?"},
    ]
    assert translated(input=items, instructions="Short").messages == expected
    for place in range(1, len(items)):
        assert translated(items_of(items[:place]), input=items[place:], instructions="Short").messages == expected


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[1].content[0].type"),
        ({"role": "user", "content": ["Hi"]}, "input[1].content[0]"),
        ({"role": "user"}, "input[1].content"),
        ({"role": "tool", "content": "x"}, "input[1].role"),
        ({"type": "item_reference", "id": "x"}, "input[1].type"),
        ({"type": "function_call", "name": "f"}, "input[1]"),
        ({"content": "x"}, "input[1]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_read_is_named(item: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        translated([{"type": "message", "role": "user", "content": "before"}], input=[{"role": "user", "content": "Hi"}, item])
    assert refused.value.param == param


def test_tools_and_their_choice() -> None:
    chat = translated(tools=[TOOL], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    assert chat.tools == [{"type": "function", "function": {name: TOOL[name] for name in TOOL if name != "type"}}]
    assert (chat.tool_choice, chat.parallel_tool_calls) == ({"type": "function", "function": {"name": "f"}}, False)
    assert translated(tool_choice="required").tool_choice == "required"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"include": ["everything"]}, "include[0]"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        translated(**fields)
    assert (refused.value.param or "").replace("[...]", "") == param


def test_fields_under_other_names() -> None:
    schema = {"type": "object"}
    chat = translated(
        max_output_tokens=5, seed=7, top_k=3, temperature=0.5, reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"},
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
    )  # fmt: skip
    assert (chat.token_limit(), chat.seed, chat.top_k, chat.temperature) == (5, 7, 3, 0.5)
    assert (chat.reasoning_effort, chat.wanted_logprobs()) == ("low", 0)
    wanted = chat.wanted()
    assert wanted is not None
    assert (wanted.kind, wanted.value) == ("json", schema)
    assert translated(reasoning={"effort": "none"}).template_variables()["enable_thinking"] is False
    assert translated(text={"format": {"type": "json_object"}}).wanted() is not None
    assert translated(text={"format": {"type": "text"}}).wanted() is None
    assert translated(top_logprobs=2).wanted_logprobs() == 2
    assert translated(top_logprobs=0).wanted_logprobs() is None


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_refused_or_on_the_list(name: str) -> None:
    if name in WITHOUT_EFFECT:
        assert translated(**{name: {"odd": 1}}) == translated()
    else:
        with pytest.raises(RequestError, match=f"^{name} is not supported"):
            translated(**{name: {"odd": 1}})


def test_the_document_names_each() -> None:
    _, _, section = (ROOT / "docs" / "api.md").read_text().partition("### OpenAI's Responses")
    section = section.partition("\n### ")[0]
    assert {name for name in UNREAD if f"`{name}`" not in section} == set()
