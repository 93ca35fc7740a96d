"""Tools and reasoning over a real connection, with OpenAI's own client."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import MODEL, TOOLS_TEMPLATE, byte_level_tokenizer, write_artifact
from serving_process import ServingProcess

from engine.artifacts import AnswerForms
from engine.errors import UsageError
from engine.server.options import ServeOptions
from engine.server.parsing.names import REASONING_FORM_NAMES, TOOL_FORM_NAMES
from engine.server.parsing.table import REASONING_FORMS, TOOL_FORMS

TOKENIZER = byte_level_tokenizer()
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
CALLS = (
    'Sure.\n<tool_call>\n{"name": "weather", "arguments": {"city": "</tool_call>"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now"}\n</tool_call>'
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    folder = tmp_path_factory.mktemp("server") / "artifact"
    with ServingProcess(write_artifact(folder, template=TOOLS_TEMPLATE, forms=AnswerForms(tools="hermes", reasoning="think"))) as server:
        yield server.ready()


def ask(server: ServingProcess, say: str, **fields: Any) -> Any:
    """A request to which the worker answers `say`."""
    variables = {"say": say, **fields.pop("chat_template_kwargs", {})}
    body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "chat_template_kwargs": variables, **fields}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_calls(server: ServingProcess) -> None:
    choice = ask(server, CALLS, tools=[WEATHER, NOW])["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Sure.", "tool_calls")
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city": "</tool_call>"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert len({call["id"] for call in calls}) == 2
    alone = ask(server, CALLS.removeprefix("Sure.\n"), tools=[WEATHER, NOW])["choices"][0]["message"]
    assert (alone["content"], len(alone["tool_calls"])) == (None, 2)
    one = ask(server, CALLS, tools=[WEATHER, NOW], parallel_tool_calls=False)["choices"][0]["message"]
    assert (one["content"], len(one["tool_calls"])) == ("Sure.", 1)


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}])
def test_where_no_tool_is_offered_all_is_text(server: ServingProcess, fields: dict[str, Any]) -> None:
    choice = ask(server, CALLS, **fields)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALLS, "stop")


def test_a_stream_of_calls_read_by_openais_client(server: ServingProcess) -> None:
    arguments: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "tools": [WEATHER, NOW], "model": MODEL, "temperature": 0}
    with server.openai.chat.completions.stream(**arguments, n=2, extra_body={"chat_template_kwargs": {"say": CALLS}}) as stream:
        message = [choice.message for choice in stream.get_final_completion().choices]
    for each in message:
        assert each.content == "Sure."
        assert [(call.function.name, json.loads(call.function.arguments)) for call in each.tool_calls or []] == [
            ("weather", {"city": "</tool_call>"}),
            ("now", {}),
        ]
    assert len({call.id for each in message for call in each.tool_calls or []}) == 4


def test_reasoning(server: ServingProcess) -> None:
    answer = ask(server, "Hm.\n</think>\n\nSo.", chat_template_kwargs={"enable_thinking": True})
    message = answer["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("Hm.", "Hm.", "So.")
    tokens = len(TOKENIZER.encode("Hm.\n</think>").ids)
    assert abs(answer["usage"]["completion_tokens_details"]["reasoning_tokens"] - tokens) <= 1
    hidden = ask(server, "Hm.\n</think>\n\nSo.", chat_template_kwargs={"enable_thinking": True}, include_reasoning=False)
    assert (hidden["choices"][0]["message"]["content"], "reasoning" in hidden["choices"][0]["message"]) == ("So.", False)
    assert hidden["usage"] == answer["usage"]
    plain = ask(server, "So.")["choices"][0]["message"]
    assert (plain["content"], "reasoning" in plain) == ("So.", False)
    calling = ask(server, f"<think>Hm.</think>{CALLS}", tools=[NOW])["choices"][0]["message"]
    assert (calling["reasoning"], calling["content"], len(calling["tool_calls"])) == ("Hm.", "Sure.", 2)


def test_logprobs_are_those_of_all_tokens(server: ServingProcess) -> None:
    answer = ask(server, CALLS, tools=[WEATHER, NOW], logprobs=True)
    assert len(answer["choices"][0]["logprobs"]["content"]) == answer["usage"]["completion_tokens"] - 1


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", template=TOOLS_TEMPLATE, forms=AnswerForms(tools="hermes", reasoning="think"))
    with ServingProcess(artifact, "--step", "0.01") as server:
        pid = server.ready().event("started")["pid"]
        whole = ask(server, CALLS, tools=[WEATHER, NOW])["choices"][0]["message"]
        body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "tools": [WEATHER, NOW], "stream": True}
        body["chat_template_kwargs"] = {"say": CALLS}
        calls: dict[int, dict[str, str]] = {}
        content = ""
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
                content += delta.get("content", "")
                for call in delta.get("tool_calls", []):
                    known = calls.setdefault(call["index"], {"name": "", "arguments": ""})
                    known["name"] += call["function"].get("name", "")
                    known["arguments"] += call["function"]["arguments"]
                if pid and calls:
                    os.kill(pid, signal.SIGKILL)
                    pid = 0
    assert (content, list(calls.values())) == (whole["content"], [call["function"] for call in whole["tool_calls"]])


def test_parsers_may_be_chosen_or_switched_off(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact", template=TOOLS_TEMPLATE, forms=AnswerForms(tools="hermes", reasoning="think"))
    say = "<think>[TOOL_CALLS]now[ARGS]{}"
    with ServingProcess(artifact, tool_parser="mistral", reasoning_parser="none") as server:
        message = ask(server.ready(), say, tools=[NOW])["choices"][0]["message"]
        assert (message["content"], message["tool_calls"][0]["function"]["name"]) == ("<think>", "now")
    with ServingProcess(artifact, tool_parser="none") as server:
        message = ask(server.ready(), CALLS, tools=[NOW])["choices"][0]["message"]
        assert (message["content"], "tool_calls" in message) == (CALLS, False)


def test_names_are_those_of_the_tables() -> None:
    assert (set(TOOL_FORM_NAMES), set(REASONING_FORM_NAMES)) == (set(TOOL_FORMS), set(REASONING_FORMS))
    with pytest.raises(UsageError, match="tool_parser"):
        ServeOptions(artifacts=Path(), tool_parser="unknown")


def test_history_with_calls_and_results(server: ServingProcess) -> None:
    call = {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rio"}'}}
    messages: list[Any] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "sunny"},
    ]
    tokens = server.http.post("/tokenize", json={"messages": messages, "tools": [NOW]}).json()["tokens"]
    rendered = TOKENIZER.decode(tokens, skip_special_tokens=False)
    assert '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rio"}}\n</tool_call><|im_end|>' in rendered
    assert "tool\nsunny<|im_end|>" in rendered
    assert rendered.startswith("<|im_start|>system\n# Tools\n")


STRICT: Any = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
NAMED = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize(
    ("fields", "grammars", "says"),
    [
        ({"tools": [WEATHER]}, 0, ()),
        ({"tools": [STRICT], "tool_choice": "none"}, 0, ()),
        ({"tools": [WEATHER, NOW], "tool_choice": "required"}, 1, ("weather", "now", "<tool_call>", "</think>")),
        ({"tools": [WEATHER, NOW], "tool_choice": NAMED}, 1, ("now",)),
        ({"tools": [STRICT]}, 1, ("weather",)),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, 2, ("weather", "@answer", "object")),
        ({"response_format": {"type": "json_object"}}, 2, ("@answer", "</think>")),
        ({"guided_regex": "[a-z]+"}, 2, ("@answer", "</think>", "[a-z]+")),
        ({"guided_choice": ["yes", "no"], "tools": [WEATHER]}, 2, ("@answer", "</think>", "weather", "yes")),
    ],
)
def test_what_the_worker_is_told_to_follow(server: ServingProcess, fields: dict[str, Any], grammars: int, says: tuple[str, ...]) -> None:
    server.forget_events()
    ask(server, "x", **fields)
    event = server.event("submit")
    grammar = event["grammar"] or ""
    assert (len(json.loads(grammar)["grammars"]) if grammar.startswith("{") else int(bool(grammar))) == grammars
    assert all(text in grammar for text in says)
    assert "weather" not in grammar or "weather" in says


def test_a_schema_that_must_hold_and_cannot_is_refused(server: ServingProcess) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"not": {"type": "null"}}}}}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [NOW, bad], "tool_choice": "required"}
    error = server.http.post("/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("tools[1].function.parameters", "unsupported_schema")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"description": "x"}}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"functions": [NOW["function"]]}, "functions"),
        ({"function_call": {"name": "now"}}, "function_call"),
        ({"messages": [{"role": "function", "name": "now", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_cannot_be_is_named(server: ServingProcess, fields: dict[str, Any], param: str) -> None:
    answer = server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
