"""What OpenAI's client makes of a stream is the whole response, however it came."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from chat_stream import TOKENIZER, ScriptedStream, streamed, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import SPLIT_ANSWERS, MarksParsing

from engine.errors import RequestError
from engine.server.dialects.logprobs import LogprobWriter
from engine.server.dialects.planning import Ask
from engine.server.dialects.responses_api.answers import ResponseObject
from engine.server.dialects.responses_api.schema import ResponsesRequest
from engine.server.dialects.responses_api.writer import ResponseWriter
from engine.server.text.token_bytes import TokenBytes

ANSWER = '<hm>so<hm>see<f>{"1":2}<g>{}'
TIMES = ("created_at", "completed_at")


def writer(ask: Ask, kept: Callable[[ResponseObject], Any] = id) -> ResponseWriter:
    return ResponseWriter("m", ask, ResponsesRequest(input="?"), None, kept)


def events_of(body: bytes) -> list[Any]:
    """As the client reads them; it checks their order as it goes."""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=body, headers={"content-type": "text/event-stream"}))
    client = openai.OpenAI(api_key="none", http_client=httpx2.Client(transport=transport))
    with client, client.responses.stream(model="m", input="?") as stream:
        return list(stream)


def plain(response: Any) -> dict[str, Any]:
    """What a response says, without what the client adds and the times."""
    found: dict[str, Any] = response if isinstance(response, dict) else response.to_dict()
    for item in found["output"]:
        for part in (item, *item.get("content", [])):
            part.pop("parsed", None)
            part.pop("parsed_arguments", None)
    return {name: value for name, value in found.items() if name not in TIMES}


@given(SPLIT_ANSWERS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_stream_is_the_whole_response(chunks: list[str], merged: bool) -> None:
    expected = plain(whole(writer, chunks, parsing=MarksParsing(), id="r"))
    events = events_of(streamed(writer, chunks, merged=merged, parsing=MarksParsing(), id="r"))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert plain(events[-1].response) == expected
    done = [event.item.to_dict() for event in events if event.type == "response.output_item.done"]
    assert done == expected["output"]
    assert [event.output_index for event in events if event.type == "response.output_item.added"] == list(range(len(done)))
    texts = {item["id"]: item.get("arguments") or "".join(part["text"] for part in item.get("content", ())) for item in done}
    for id, text in texts.items():
        assert "".join(event.delta for event in events if event.type.endswith(".delta") and event.item_id == id) == text


def test_events_and_their_order() -> None:
    events = events_of(streamed(writer, list(ANSWER), merged=True, parsing=MarksParsing(), id="r"))
    kinds = [event.type.removeprefix("response.") for event in events]
    part = ["output_item.added", "content_part.added", "{}.delta", "{}.done", "content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    items = [[name.format("reasoning_text") for name in part], [name.format("output_text") for name in part], call, call]
    assert [kind for i, kind in enumerate(kinds) if not kind.endswith(".delta") or kinds[i - 1] != kind] == [
        *("created", "in_progress"),
        *[kind for item in items for kind in item],
        "completed",
    ]


def test_a_whole_response() -> None:
    kept: list[ResponseObject] = []
    response = whole(lambda ask: writer(ask, kept.append), [ANSWER], parsing=MarksParsing(), id="r")
    thinking, message, first, second = response["output"]
    assert thinking["content"] == [{"type": "reasoning_text", "text": "so"}]
    assert message["content"] == [{"type": "output_text", "text": "see", "annotations": [], "logprobs": []}]
    assert (first["name"], first["arguments"], second["name"], second["arguments"]) == ("f", '{"1":2}', "g", "{}")
    assert {item["status"] for item in response["output"]} == {response["status"]} == {"completed"}
    assert (response["id"], response["incomplete_details"]) == ("resp_r", None)
    assert response["usage"]["total_tokens"] == 2 + response["usage"]["output_tokens"]
    assert kept[0].id == "resp_r"


def test_an_answer_that_was_cut_off() -> None:
    response = whole(writer, ["<hm>so<hm>see"], finish_reason="length", parsing=MarksParsing())
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    events = events_of(streamed(writer, list("see"), finish_reason="length"))
    assert events[-1].type == "response.incomplete"


def test_an_answer_that_says_nothing_is_an_empty_message() -> None:
    (item,) = whole(writer, [])["output"]
    assert item["content"][0]["text"] == ""
    assert events_of(streamed(writer, [""]))[-1].response.output_text == ""


@pytest.mark.parametrize("merged", [False, True])
def test_logprobs_are_of_the_tokens_that_the_text_is_made_of(merged: bool) -> None:
    def scored(ask: Ask) -> ResponseWriter:
        return ResponseWriter("m", ask, ResponsesRequest(input="?", top_logprobs=1), LogprobWriter(TokenBytes(TOKENIZER)), id)

    answer = ["<hm>", "s", "o", "<hm>", "s", "ee"]
    response = whole(scored, answer, logprobs=0, parsing=MarksParsing())
    (part,) = response["output"][1]["content"]
    assert "".join(each["token"] for each in part["logprobs"]).endswith("see")
    events = events_of(streamed(scored, answer, merged=merged, logprobs=0, parsing=MarksParsing()))
    assert events[-1].response.output[1].content[0].to_dict()["logprobs"] == part["logprobs"]
    told = [each.token for event in events if event.type == "response.output_text.delta" for each in event.logprobs]
    assert told == [each["token"] for each in part["logprobs"]]


def test_an_error_ends_a_stream() -> None:
    kept: list[ResponseObject] = []

    async def scenario() -> bytes:
        stream = ScriptedStream(lambda ask: writer(ask, kept.append))
        source = await stream.start()
        stream.worker.put("a")
        await source.begun()
        stream.sink.open()
        error = RequestError("gone", status=503, hint="again")
        stream.worker.fail(error)
        with pytest.raises(RequestError):
            await source.ended()
        return b"".join([*stream.client.chunks, stream.failed(error)])

    last = events_of(asyncio.run(scenario()))[-1]
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert "gone" in last.response.error.message
    assert kept == []
