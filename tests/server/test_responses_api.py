"""OpenAI's Responses API over a real connection, with OpenAI's own client."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from artifact_stand_in import MODEL, write_artifact
from joined_events import joined_events
from serving_process import ServingProcess

HI = "Hi 🎉 there"
ECHO = "user\nHi 🎉 there"
"""What the worker says back: the prompt up to its first end-of-turn token."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("server") / "artifact")


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def client(server: ServingProcess) -> openai.OpenAI:
    return server.openai


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=HI, temperature=0, metadata={"a": "b"})
    assert (response.output_text, response.status, response.model, response.metadata) == (ECHO, "completed", MODEL, {"a": "b"})
    chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": HI}], temperature=0)
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert response.usage.input_tokens_details.cached_tokens == 2


def test_a_stream_is_the_response(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": HI, "temperature": 0, "instructions": "Be kind"}
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        streamed: dict[str, Any] = stream.get_final_response().to_dict()
    whole = client.responses.create(**asked)
    assert whole.output_text == streamed["output"][0]["content"][0]["text"] == "system\nBe kind"
    assert events[0].type == "response.created"
    changing = {"id", "created_at", "completed_at", "output"}
    assert {name: value for name, value in streamed.items() if name not in changing} == {
        name: value for name, value in whole.to_dict().items() if name not in changing
    }


def test_a_response_that_is_cut_off_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=HI, temperature=0, max_output_tokens=3)
    assert (response.status, response.incomplete_details and response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage is not None
    assert response.usage.output_tokens == 3


def test_logprobs(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=HI, temperature=0, include=["message.output_text.logprobs"], top_logprobs=2)
    part = response.output[0].content[0]  # type: ignore[union-attr, index]
    assert b"".join(bytes(each.bytes) for each in part.logprobs).decode() == f"<|im_start|>{ECHO}"  # type: ignore[union-attr]
    assert {len(each.top_logprobs) for each in part.logprobs} == {2}  # type: ignore[union-attr]


def conversation(client: openai.OpenAI, **fields: Any) -> tuple[Any, Any]:
    first = client.responses.create(model=MODEL, input="One", temperature=0, **fields)
    return first, client.responses.create(model=MODEL, input="Two", temperature=0, previous_response_id=first.id)


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    first, second = conversation(client, instructions="Be kind")
    messages: list[Any] = [
        {"role": "user", "content": "One"}, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "Two"},
    ]  # fmt: skip
    chat = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=1)
    assert chat.usage is not None
    assert second.usage.input_tokens == chat.usage.prompt_tokens, "instructions are those of one response"
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == ["message"] * 3
    assert len({item.id for item in items}) == 3
    newest = client.responses.input_items.list(second.id, limit=2)
    assert newest.has_more
    assert [item.id for item in newest.data] == [items[2].id, items[1].id]
    assert [item.id for item in client.responses.input_items.list(second.id, limit=2)] == [item.id for item in reversed(items)]


def test_what_is_stored_is_found_and_deleted(client: openai.OpenAI) -> None:
    first, second = conversation(client)
    assert client.responses.retrieve(first.id) == first
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(first.id)
    client.responses.delete(first.id)
    for forgotten in (client.responses.retrieve, client.responses.delete, client.responses.cancel, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            forgotten(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="x", previous_response_id=first.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")
    assert client.responses.create(model=MODEL, input="x", previous_response_id=second.id, max_output_tokens=1).usage is not None


def test_what_shall_not_be_stored_is_not(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=HI, store=False, max_output_tokens=1)
    assert response.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": []}, "input"),
        ({"input": [{"role": "assistant", "content": "first"}]}, "input"),
        ({"max_output_tokens": 600}, "max_output_tokens"),
        ({"input": "a b c d " * 600}, "input"),
        ({"conversation": "c"}, "conversation"),
        ({"model": "other"}, "model"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"properties": {"a": {"not": {}}}}}}}, "text.format"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_name_the_field(client: openai.OpenAI, fields: dict[str, Any], param: str, stream: bool) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/responses", body={"input": HI, "stream": stream, **fields}, cast_to=object)
    assert (refused.value.status_code, refused.value.param) == (404 if param == "model" else 400, param)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=101", "after=nothing"])
def test_a_list_that_cannot_be(server: ServingProcess, client: openai.OpenAI, query: str) -> None:
    response = client.responses.create(model=MODEL, input=HI, max_output_tokens=1)
    refused = server.http.get(f"/v1/responses/{response.id}/input_items?{query}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])


ENDLESS: dict[str, Any] = {"input": HI, "max_output_tokens": 200, "temperature": 1, "seed": 3, "ignore_eos": True, "stream": True}


def test_a_worker_that_dies_changes_nothing(artifact: Path) -> None:
    with ServingProcess(artifact, "--step", "0.005") as server:
        worker = server.event("started")["pid"]
        server.ready()
        bodies = []
        for kills in (False, True):
            with server.http.stream("POST", "/v1/responses", json=ENDLESS) as response:
                chunks = response.iter_text()
                body = next(chunks)
                if kills:
                    os.kill(worker, signal.SIGKILL)
                bodies.append(joined_events(re.sub(r'(_at":)\d+|_[0-9a-f]{32}', r"\g<1>0", body + "".join(chunks))))
        assert server.event("started")["pid"] != worker
        assert bodies[0] == bodies[1]
        assert max(len(text) for _, text in bodies[0]) > 50


def test_a_client_that_goes_away_ends_its_request_and_nothing_is_stored(artifact: Path) -> None:
    with ServingProcess(artifact, "--step", "0.005") as server:
        server.ready()
        with server.http.stream("POST", "/v1/responses", json=ENDLESS) as response:
            next(response.iter_text())
        assert server.event("abort")["known"]
        assert server.http.get(f"/v1/responses/{response.headers['x-request-id']}").status_code == 404
