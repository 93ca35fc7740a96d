"""Tools and reasoning in the Responses and the Messages API, with the vendors' own clients: as in chat completions."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pydantic
import pytest
from artifact_stand_in import MODEL, TOOLS_TEMPLATE, write_artifact
from patience import PATIENCE
from serving_process import ServingProcess

from engine.artifacts import AnswerForms

CALLS = '<think>Hm</think>So\n<tool_call>{"name": "f", "arguments": {"a": "</"}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>'
SAY: dict[str, Any] = {"temperature": 0, "chat_template_kwargs": {"say": CALLS}}
"""What makes the worker answer CALLS."""
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fg"]
RESPONSES_TOOLS: Any = [{"type": "function", **tool["function"]} for tool in CHAT_TOOLS]
MESSAGES_TOOLS: Any = [{"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in CHAT_TOOLS]
ASKED: Any = [{"role": "user", "content": "x"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "x", "tools": RESPONSES_TOOLS, **SAY},
    "/v1/messages": {"messages": ASKED, "tools": MESSAGES_TOOLS, **SAY},
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    forms = AnswerForms(tools="hermes", reasoning="think")
    return write_artifact(tmp_path_factory.mktemp("server") / "artifact", template=TOOLS_TEMPLATE, forms=forms)


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def messages(server: ServingProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


def test_calls_in_responses(server: ServingProcess) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "x", "tools": RESPONSES_TOOLS, "extra_body": SAY}
    with server.openai.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    for response in (server.openai.responses.create(**asked), streamed):
        items: list[dict[str, Any]] = [item.to_dict() for item in response.output]
        assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
        assert [item["content"][0]["text"] for item in items[:2]] == ["Hm", "So"]
        assert [(item["name"], json.loads(item["arguments"])) for item in items[2:]] == [("f", {"a": "</"}), ("g", {})]
        assert len({item["call_id"] for item in items[2:]}) == 2


def test_calls_in_messages(messages: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 150, "messages": ASKED, "tools": MESSAGES_TOOLS, "extra_body": SAY}
    with messages.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (messages.messages.create(**asked), streamed):
        thinking, text, first, second = (block.to_dict() for block in message.content)
        assert (thinking["thinking"], text["text"], message.stop_reason) == ("Hm", "So", "tool_use")
        assert (first["name"], first["input"], second["name"], second["input"]) == ("f", {"a": "</"}, "g", {})


class Place(pydantic.BaseModel):
    city: str


def test_structured_text_is_parsed_by_the_clients(server: ServingProcess, messages: anthropic.Anthropic) -> None:
    say = {**SAY, "chat_template_kwargs": {"say": '{"city": "Rio"}'}}
    server.forget_events()
    response = server.openai.responses.parse(model=MODEL, input="x", text_format=Place, extra_body=say)
    assert response.output_parsed == Place(city="Rio")
    assert "city" in server.event("submit")["grammar"]
    message = messages.messages.parse(model=MODEL, max_tokens=150, messages=ASKED, output_format=Place, extra_body=say)
    assert message.parsed_output == Place(city="Rio")
    assert "city" in server.event("submit")["grammar"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"tool_choice": {"type": "function", "name": "g"}}),
        ("/v1/messages", {"tool_choice": {"type": "tool", "name": "g"}}),
        ("/v1/responses", {"tool_choice": "required"}),
        ("/v1/messages", {"tool_choice": {"type": "any"}}),
    ],
)
def test_the_choice_of_a_tool_is_a_grammar(server: ServingProcess, path: str, fields: dict[str, Any]) -> None:
    server.forget_events()
    assert server.http.post(path, json={**BODIES[path], **fields}).status_code == 200
    grammar = server.event("submit")["grammar"]
    offered = [f'"name": "{name}"' in grammar.replace("\\", "") for name in "fg"]
    assert offered == ["name" not in str(fields), True]


def test_a_budget_of_thinking_is_kept_where_it_can_be(server: ServingProcess, tmp_path: Path) -> None:
    def grammar(server: ServingProcess, path: str, **fields: Any) -> str | None:
        server.forget_events()
        answer = server.http.post(path, json={"messages": ASKED, "max_tokens": 9, **fields})
        assert answer.status_code == 200, answer.text
        found: str | None = server.event("submit")["grammar"]
        return found

    enabled = {"thinking": {"type": "enabled", "budget_tokens": 3}}
    assert grammar(server, "/v1/messages", **enabled) is None, "its marks are no tokens"
    forms, tokens = AnswerForms(reasoning="think"), ("<think>", "</think>")
    with ServingProcess(write_artifact(tmp_path / "a", template=TOOLS_TEMPLATE, forms=forms, added_tokens=tokens)) as bounded:
        bounded.ready()
        for opened in (True, False):
            variables = {"enable_thinking": opened}
            chat = grammar(bounded, "/v1/chat/completions", thinking_token_budget=3, chat_template_kwargs=variables)
            assert "max_tokens=3" in (chat or "")
            assert grammar(bounded, "/v1/messages", **enabled, chat_template_kwargs=variables) == chat
        for kind in ("adaptive", "disabled"):
            assert grammar(bounded, "/v1/messages", thinking={"type": kind}) is None


@pytest.mark.parametrize(
    ("path", "tool", "param"),
    [
        ("/v1/responses", {"type": "function", "name": "f", "parameters": {"properties": {"a": {"not": {}}}}}, "tools[0].parameters"),
        ("/v1/messages", {"name": "f", "input_schema": {"properties": {"a": {"not": {}}}}}, "tools[0].input_schema"),
    ],
)
def test_a_schema_that_cannot_hold_is_named(server: ServingProcess, path: str, tool: Any, param: str) -> None:
    refused = server.http.post(path, json={**BODIES[path], "tools": [{**tool, "strict": True}]})
    assert refused.status_code == 400
    assert param in refused.json()["error"].get("param", refused.json()["error"]["message"])
    assert f"{param} cannot be honoured at #/properties/a" in refused.json()["error"]["message"]


def test_history_is_what_chat_completions_make_of_it(server: ServingProcess, messages: anthropic.Anthropic) -> None:
    first = server.openai.responses.create(model=MODEL, input="x", tools=RESPONSES_TOOLS, extra_body=SAY)
    calls = [item for item in first.output if item.type == "function_call"]
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    second = server.openai.responses.create(model=MODEL, input=results, previous_response_id=first.id, tools=RESPONSES_TOOLS)

    message = messages.messages.create(model=MODEL, max_tokens=150, messages=ASKED, tools=MESSAGES_TOOLS, extra_body=SAY)
    used = [block.id for block in message.content if block.type == "tool_use"]
    history: Any = [
        *ASKED,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "sunny"} for id in used]},
    ]
    counted = messages.messages.count_tokens(model=MODEL, messages=history, tools=MESSAGES_TOOLS)

    chat = server.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": CHAT_TOOLS, **SAY}).json()["choices"][0]["message"]
    told = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in chat["tool_calls"]]
    whole = server.http.post("/tokenize", json={"messages": [*ASKED, chat, *told], "tools": CHAT_TOOLS}).json()
    assert second.usage is not None
    assert second.usage.input_tokens == counted.input_tokens == whole["count"]


@pytest.mark.parametrize("path", BODIES)
def test_a_worker_that_dies_amid_calls_changes_no_byte(artifact: Path, path: str) -> None:
    with ServingProcess(artifact, "--step", "0.005") as server:
        worker = server.event("started")["pid"]
        server.ready()
        bodies = []
        for kills in (False, True):
            with server.http.stream("POST", path, json={**BODIES[path], "stream": True}) as response:
                body = ""
                for chunk in response.iter_text():
                    body += chunk
                    if kills and re.search("function_call|tool_use", body):
                        os.kill(worker, signal.SIGKILL)
                        kills = False
                bodies.append(body)
        assert server.event("started")["pid"] != worker
        varying = r"_[0-9a-f]{32}|\"(created|completed)_at\":\d+|\"(call_)?id\":\"[0-9a-f]{9}\""
        first, second = (re.sub(varying, "", body) for body in bodies)
        assert first == second
        assert '"name":"g"' in first
