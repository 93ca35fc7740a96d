"""Anthropic's Messages API over a real connection, with Anthropic's own client."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from artifact_stand_in import MODEL, write_artifact
from joined_events import joined_events
from patience import PATIENCE
from serving_process import ServingProcess

GREEDY = {"temperature": 0}
"""In the body by itself: the client's newer versions know no field for it."""
HI: list[Any] = [{"role": "user", "content": "Hi 🎉 there"}]
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
def client(server: ServingProcess) -> Iterator[anthropic.Anthropic]:
    with client_of(server) as client:
        yield client


def client_of(server: ServingProcess, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, timeout=PATIENCE, max_retries=0)


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=200, messages=HI, extra_body=GREEDY)
    (block,) = message.content
    assert block.type == "text"
    assert (block.text, message.role, message.stop_reason, message.model) == (ECHO, "assistant", "end_turn", MODEL)
    counted = client.messages.count_tokens(model=MODEL, messages=HI)
    assert message.usage.cache_read_input_tokens == 2
    assert message.usage.input_tokens == counted.input_tokens - 2
    assert message._request_id == message.id


def test_a_stream_is_the_message(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "messages": HI, "system": "Be kind", "extra_body": GREEDY}
    with client.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        streamed: dict[str, Any] = stream.get_final_message().to_dict()
    whole = client.messages.create(**asked).to_dict()
    assert "".join(texts) == streamed["content"][0]["text"]
    assert {**streamed, "id": ""} == {**whole, "id": ""}


def test_why_it_stops(client: anthropic.Anthropic) -> None:
    def stop(**fields: Any) -> tuple[Any, ...]:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "messages": HI, "extra_body": GREEDY, **fields}
        message = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in message.content]
        assert (streamed.stop_reason, streamed.stop_sequence) == (message.stop_reason, message.stop_sequence)
        return message.stop_reason, message.stop_sequence

    assert stop() == ("end_turn", None)
    assert stop(max_tokens=3) == ("max_tokens", None)
    assert stop(max_tokens=32_000, extra_body={**GREEDY, "ignore_eos": True}) == ("model_context_window_exceeded", None)
    assert stop(stop_sequences=["nope", "the"]) == ("stop_sequence", "the")


def test_the_answer_is_that_of_chat_completions(server: ServingProcess, client: anthropic.Anthropic) -> None:
    chosen: dict[str, Any] = {"temperature": 1, "seed": 7, "top_k": 9, "min_p": 0.01}
    message = client.messages.create(model=MODEL, max_tokens=20, system="Be kind", messages=HI, extra_body=chosen)
    chat = server.openai.chat.completions.create(
        model=MODEL,
        max_tokens=20,
        messages=[{"role": "system", "content": "Be kind"}, *HI],
        temperature=1,
        extra_body={"top_k": 9, **chosen},
    )
    assert message.content[0].type == "text"
    assert message.content[0].text == chat.choices[0].message.content


def test_an_answer_that_was_begun_goes_on(server: ServingProcess, client: anthropic.Anthropic) -> None:
    begun: list[Any] = [*HI, {"role": "assistant", "content": "Well"}]
    chat = {"messages": begun, "add_generation_prompt": False, "continue_final_message": True}
    assert (
        client.messages.count_tokens(model=MODEL, messages=begun).input_tokens == server.http.post("/tokenize", json=chat).json()["count"]
    )


def test_structured_output(client: anthropic.Anthropic) -> None:
    """A schema that cannot be honoured is refused as in chat completions: so it got there."""
    with pytest.raises(anthropic.BadRequestError, match=r"output_config.format.*#/properties/a"):
        client.messages.create(
            model=MODEL, max_tokens=5, messages=HI,
            output_config={"format": {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"not": {}}}}}},
        )  # fmt: skip


def test_counting_needs_no_room(client: anthropic.Anthropic) -> None:
    long: list[Any] = [{"role": "user", "content": "a b c d " * 2000}]
    assert client.messages.count_tokens(model=MODEL, messages=long, system="Be kind").input_tokens > 2000
    with pytest.raises(anthropic.BadRequestError, match="messages: the prompt has"):
        client.messages.create(model=MODEL, max_tokens=5, messages=long)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/messages", {"messages": HI, "container": "c"}, 400, "invalid_request_error"),
        ("/v1/messages", {"messages": HI, "model": "other"}, 404, "not_found_error"),
        ("/v1/messages/batches", {}, 404, "not_found_error"),
        ("/v1/messages/count_tokens", {}, 400, "invalid_request_error"),
    ],
)
def test_errors_are_anthropics(server: ServingProcess, path: str, body: Any, status: int, kind: str) -> None:
    response = server.http.post(path, json=body, headers={"anthropic-version": "2023-06-01"})
    assert response.status_code == status
    assert set(response.json()) == {"type", "error"}
    assert (response.json()["type"], response.json()["error"]["type"]) == ("error", kind)
    assert response.json()["error"]["message"]


def test_errors_elsewhere_are_openais(server: ServingProcess) -> None:
    assert "type" not in server.http.post("/v1/messages-of-mine", json={}).json()
    assert "type" not in server.http.post("/v1/completions", json={}).json()


def test_the_key(artifact: Path) -> None:
    with ServingProcess(artifact, api_key="secret") as server:
        server.ready()
        with client_of(server, "secret") as client:
            assert client.messages.create(model=MODEL, max_tokens=1, messages=HI, extra_body=GREEDY).stop_reason == "max_tokens"
        with client_of(server, "wrong") as client, pytest.raises(anthropic.AuthenticationError) as refused:
            client.messages.create(model=MODEL, max_tokens=1, messages=HI)
        assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]


ENDLESS: dict[str, Any] = {"messages": HI, "max_tokens": 200, "temperature": 1, "seed": 3, "ignore_eos": True, "stream": True}


def test_a_worker_that_dies_changes_nothing(artifact: Path) -> None:
    with ServingProcess(artifact, "--step", "0.005") as server:
        worker = server.event("started")["pid"]
        server.ready()
        bodies = []
        for kills in (False, True):
            with server.http.stream("POST", "/v1/messages", json=ENDLESS) as response:
                chunks = response.iter_text()
                body = next(chunks)
                if kills:
                    os.kill(worker, signal.SIGKILL)
                bodies.append(joined_events(re.sub("msg_[0-9a-f]{32}", "msg", body + "".join(chunks))))
        assert server.event("started")["pid"] != worker
        assert bodies[0] == bodies[1]
        assert max(len(text) for _, text in bodies[0]) > 50


def test_a_client_that_goes_away_ends_its_request(artifact: Path) -> None:
    with ServingProcess(artifact, "--step", "0.005") as server:
        server.ready()
        with server.http.stream("POST", "/v1/messages", json=ENDLESS) as response:
            next(response.iter_text())
        assert server.event("abort")["known"]
