"""Calls that a real model is held to, though it never learned to make any, and a worker killed in the middle of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from artifact_stand_in import TOOLS_TEMPLATE, seal
from serving_process import ServingProcess
from worker_of import worker_of

from engine.artifacts import AnswerForms, load_manifest

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW: Any = {"type": "function", "function": {"name": "now", "description": "Tells the time."}}
ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "How is the weather in Rio?"}], "max_tokens": 100}


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """The demo model with a template for tools, as if it had been built with one."""
    folder = tmp_path_factory.mktemp("tools") / "artifact"
    shutil.copytree(smollm2, folder)
    (folder / "tokenizer" / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    seal(folder, msgspec.structs.replace(load_manifest(smollm2), forms=AnswerForms(tools="hermes")))
    with ServingProcess(folder, worker_command=None, kv_memory=2**28, max_num_seqs=8, served_model_name="smollm2") as server:
        yield server.ready()


def ask(server: ServingProcess, **fields: Any) -> Any:
    return server.openai.chat.completions.create(**{**ASK, "tools": [WEATHER, NOW], "temperature": 0, **fields})


def check(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert set(arguments) == {"city", "days"}
        assert len(arguments["city"]) <= 12
        assert 1 <= arguments["days"] <= 9
    else:
        assert (call.function.name, arguments) == ("now", {})


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_follow_their_schemas(server: ServingProcess, seed: int) -> None:
    answer = ask(server, tool_choice="required", parallel_tool_calls=False, temperature=1, seed=seed, n=2)
    for choice in answer.choices:
        assert (choice.finish_reason, len(choice.message.tool_calls)) == ("tool_calls", 1)
        check(choice.message.tool_calls[0])


def test_a_named_function_is_the_one_that_is_called(server: ServingProcess) -> None:
    message = ask(server, tool_choice={"type": "function", "function": {"name": "get_weather"}}).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_weather"]
    assert message.content is None
    check(message.tool_calls[0])


def test_a_killed_worker_changes_nothing(server: ServingProcess) -> None:
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 1, "seed": 7, "n": 3}
    whole = ask(server, **fields)
    said: dict[int, str] = {}
    killed = False
    for chunk in ask(server, stream=True, **fields):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                said[choice.index] = said.get(choice.index, "") + (call.function.name or "") + (call.function.arguments or "")
        if not killed and sum(map(len, said.values())) > 10:
            worker_of(server.process.pid).kill()
            killed = True
    assert killed
    calls = {choice.index: choice.message.tool_calls[0].function for choice in whole.choices}
    assert said == {index: call.name + call.arguments for index, call in calls.items()}
