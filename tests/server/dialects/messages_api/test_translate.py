"""Requests of Anthropic's API as requests for chat completions."""

from typing import Any, get_type_hints

import msgspec
import pytest
from checkout import ROOT

from engine.errors import RequestError
from engine.server.dialects.decoding import decode_request
from engine.server.dialects.messages_api.conversation import chat_messages
from engine.server.dialects.messages_api.schema import WITHOUT_EFFECT, MessagesRequest
from engine.server.dialects.messages_api.translate import as_chat
from engine.server.dialects.schemas import ChatRequest

TOOL = {"name": "f", "description": "does it", "input_schema": {"type": "object"}}
UNREAD = [name for name, type_ in get_type_hints(MessagesRequest).items() if type_ is Any]
"""Fields whose values no schema looks at."""


def translated(**fields: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, **fields}
    return as_chat(decode_request(msgspec.json.encode(body), MessagesRequest))


def test_blocks_are_messages() -> None:
    asked: list[Any] = [
        {"type": "text", "text": "What"},
        {"type": "text", "text": "now?", "cache_control": {"type": "ephemeral"}},
    ]
    answered: list[Any] = [
        {"type": "redacted_thinking", "data": "?"},
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "So"},
        {"type": "tool_use", "id": "i", "name": "f", "input": {"a": "é"}},
        {"type": "tool_use", "id": "j", "name": "g", "input": {}},
    ]
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": "i", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
        {"type": "tool_result", "tool_use_id": "j", "is_error": True},
        {"type": "text", "text": "And?"},
    ]
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answered},
        {"role": "user", "content": results},
        {"role": "system", "content": "be quick"},
    ]
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
        {"type": "text", "text": "Be"},
        {"type": "text", "text": "kind"},
    ]
    calls = [
        {"id": "i", "type": "function", "function": {"name": "f", "arguments": '{"a":"é"}'}},
        {"id": "j", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert chat_messages(system, messages) == [
        {"role": "system", "content": "Be\nkind"},
        {"role": "user", "content": [{"type": "text", "text": "What"}, {"type": "text", "text": "now?"}]},
        {"role": "assistant", "content": "So", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "i", "content": "1\n2"},
        {"role": "tool", "tool_call_id": "j", "content": "", "is_error": True},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
        {"role": "system", "content": "be quick"},
    ]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": [{"type": "image", "source": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "tool_use", "id": "i", "name": "f", "input": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": [{"type": "image"}]}]}],
         "messages[0].content[0].content[0].type"),
        ([{"role": "assistant", "content": [{"type": "server_tool_use"}]}], "messages[0].content[0].type"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
    ],
    ids=lambda value: str(value)[-40:],
)  # fmt: skip
def test_what_cannot_be_read_is_named(messages: list[Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        translated(messages=messages)
    assert refused.value.param == param


def test_tools_and_their_choice() -> None:
    function = {"name": "f", "description": "does it", "parameters": {"type": "object"}}
    chat = translated(tools=[TOOL, {**TOOL, "type": "custom", "strict": True, "eager_input_streaming": True}], tool_choice={"type": "auto"})
    assert chat.tools == [{"type": "function", "function": function}, {"type": "function", "function": {**function, "strict": True}}]
    choices: list[tuple[Any, Any, Any]] = [
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "f", "disable_parallel_tool_use": False}, {"type": "function", "function": {"name": "f"}}, None),
    ]
    for given, choice, parallel in choices:
        chat = translated(tools=[TOOL], tool_choice=given)
        assert (chat.tool_choice, chat.parallel_tool_calls) == (choice, parallel)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0]"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": 3}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"what": 1}, "what"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        translated(**fields)
    assert refused.value.param == param


def test_fields_under_other_names() -> None:
    schema = {"type": "object"}
    chat = translated(
        system="Be kind", stop_sequences=["x"], top_k=3, seed=5, temperature=0.5, thinking={"type": "disabled"},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}},
    )  # fmt: skip
    assert chat.messages[0] == {"role": "system", "content": "Be kind"}
    assert (chat.stop, chat.top_k, chat.seed, chat.temperature, chat.max_tokens) == (["x"], 3, 5, 0.5, 5)
    assert (chat.reasoning_effort, chat.chat_template_kwargs) == ("low", {"enable_thinking": False, "thinking": False})
    wanted = chat.wanted()
    assert wanted is not None
    assert (wanted.kind, wanted.value) == ("json", schema)
    assert chat.thinking_token_budget is None
    enabled = translated(thinking={"type": "enabled", "budget_tokens": 7})
    assert (enabled.thinking_token_budget, enabled.chat_template_kwargs) == (7, {"enable_thinking": True, "thinking": True})
    adaptive = translated(thinking={"type": "adaptive"})
    assert (adaptive.thinking_token_budget, adaptive.chat_template_kwargs) == (None, {"enable_thinking": True, "thinking": True})
    assert translated().chat_template_kwargs is None


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_refused_or_on_the_list(name: str) -> None:
    if name in WITHOUT_EFFECT:
        assert translated(**{name: {"odd": 1}}) == translated()
    else:
        with pytest.raises(RequestError, match=f"^{name} is not supported"):
            translated(**{name: {"odd": 1}})


def test_the_document_names_each() -> None:
    _, _, section = (ROOT / "docs" / "api.md").read_text().partition("### Anthropic's Messages")
    section = section.partition("\n### ")[0]
    assert {name for name in UNREAD if f"`{name}`" not in section} == set()
