"""What Anthropic's client makes of a stream is the whole answer, however it came."""

import asyncio
from itertools import chain
from typing import Any

import anthropic
import httpx2
import pytest
from chat_stream import ScriptedStream, streamed, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import SPLIT_ANSWERS, MarksParsing

from engine.errors import RequestError
from engine.server.dialects.messages_api.writer import MessageWriter
from engine.server.dialects.planning import Ask

ANSWER = '<hm>so<hm>see<f>{"1":2}<g>{}'


def writer(ask: Ask) -> MessageWriter:
    return MessageWriter("m", ask, shows_thinking=True)


def accumulated(body: bytes) -> dict[str, Any]:
    """The message that the client makes of a stream."""
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=body, headers={"content-type": "text/event-stream"}))
    client = anthropic.Anthropic(api_key="none", http_client=httpx2.Client(transport=transport))
    with client, client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "?"}]) as stream:
        return stream.get_final_message().to_dict()


@given(SPLIT_ANSWERS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_stream_is_the_whole_answer(chunks: list[str], merged: bool) -> None:
    message = whole(writer, chunks, parsing=MarksParsing(), id="r")
    assert accumulated(streamed(writer, chunks, merged=merged, parsing=MarksParsing(), id="r")) == message


def test_events_and_their_order() -> None:
    body = streamed(writer, list(ANSWER), parsing=MarksParsing(), id="r").decode()
    kinds = [line.removeprefix("event: ") for line in body.split("\n") if line.startswith("event: ")]
    blocks = [["content_block_start", *["content_block_delta"] * deltas, "content_block_stop"] for deltas in (3, 3, 7, 2)]
    assert kinds == ["message_start", "ping", *chain(*blocks), "message_delta", "message_stop"]
    assert body.index('"thinking_delta","thinking":"o"') < body.index('"signature_delta"') < body.index('"text_delta","text":"s"')


def test_a_whole_answer() -> None:
    message = whole(writer, [ANSWER], parsing=MarksParsing(), id="r")
    thinking, text, first, second = message["content"]
    assert (thinking["type"], thinking["thinking"], len(thinking["signature"])) == ("thinking", "so", 64)
    assert text == {"type": "text", "text": "see"}
    assert (first["name"], first["input"], second["name"], second["input"]) == ("f", {"1": 2}, "g", {})
    assert (message["id"], message["stop_reason"], message["stop_sequence"]) == ("msg_r", "tool_use", None)


def test_arguments_that_were_cut_off_are_not_lost() -> None:
    message = whole(writer, ['<f>{"1"'], finish_reason="length", parsing=MarksParsing())
    assert message["content"][0]["input"] == {"INVALID_JSON": '{"1"'}
    assert message["stop_reason"] == "model_context_window_exceeded", "it had fewer tokens than it might have had"


def test_thinking_may_be_left_out() -> None:
    hiding = lambda ask: MessageWriter("m", ask, shows_thinking=False)  # noqa: E731
    message = whole(hiding, list(ANSWER), parsing=MarksParsing(), id="r")
    assert (message["content"][0]["thinking"], message["content"][1]["text"]) == ("", "see")
    assert accumulated(streamed(hiding, list(ANSWER), parsing=MarksParsing(), id="r")) == message


def test_an_error_ends_a_stream() -> None:
    async def scenario() -> bytes:
        stream = ScriptedStream(writer)
        source = await stream.start()
        stream.worker.put("a")
        await source.begun()
        stream.sink.open()
        error = RequestError("gone", status=503, hint="again")
        stream.worker.fail(error)
        with pytest.raises(RequestError):
            await source.ended()
        return b"".join([*stream.client.chunks, stream.failed(error)])

    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        accumulated(asyncio.run(scenario()))
