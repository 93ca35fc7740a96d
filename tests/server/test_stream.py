"""How a stream's events leave: one per token to a client that reads, merged for one that does not."""

import asyncio
from collections.abc import Iterator

import pytest
from chat_stream import ScriptedStream
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as PrometheusHistogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.errors import RequestError
from engine.server.dialects.answers import Answer, ChatChunkChoice, ChatDelta
from engine.server.histogram import Histogram
from engine.server.http.sse import DONE, EventTemplate, event
from engine.server.metrics_page import histogram_family


def test_one_event_per_token_to_a_client_that_reads() -> None:
    async def scenario() -> None:
        stream = ScriptedStream()
        source = await stream.start()
        stream.worker.put("a")
        await source.begun()
        stream.sink.open()
        for text in "bc":
            stream.worker.put(text)
        assert stream.texts() == ["a", "b", "c"]
        stream.worker.put("d", finish_reason="length")
        last = await source.ended()
        assert last.endswith(DONE)
        assert stream.texts(last) == ["a", "b", "c", "d", ""], "the reason to finish has an event of its own"

    asyncio.run(scenario())


def test_what_comes_before_the_head_is_one_event() -> None:
    async def scenario() -> None:
        stream = ScriptedStream()
        source = await stream.start()
        for text in "abc":
            stream.worker.put(text)
        await source.begun()
        assert stream.client.chunks == []
        stream.sink.open()
        assert stream.texts() == ["abc"]

    asyncio.run(scenario())


def test_what_a_slow_client_has_not_read_is_merged() -> None:
    async def scenario() -> None:
        stream = ScriptedStream(choices=2)
        source = await stream.start()
        stream.worker.put("a")
        stream.sink.open()
        stream.client.stop_reading()
        for text in "bcd":
            stream.worker.put(text)
            stream.worker.put(text.upper(), choice=1)
        assert stream.texts() == ["a"]
        stream.client.read_on()
        assert stream.texts() == ["a", "bcd", "BCD"]
        stream.client.stop_reading()
        stream.worker.put("e")
        for choice in range(2):
            stream.worker.put("!", choice=choice, finish_reason="length")
        ending = asyncio.ensure_future(source.ended())
        await asyncio.sleep(0)
        assert not ending.done(), "the end waits for the client"
        stream.client.read_on()
        assert stream.texts(await ending) == ["a", "bcd", "BCD", "e!", "", "!", ""]

    asyncio.run(scenario())


def test_an_error_comes_after_what_was_held() -> None:
    async def scenario() -> None:
        stream = ScriptedStream()
        source = await stream.start()
        stream.worker.put("a")
        stream.sink.open()
        stream.client.stop_reading()
        stream.worker.put("b")
        stream.worker.fail(RequestError("gone", status=503))
        ending = asyncio.ensure_future(source.ended())
        await asyncio.sleep(0)
        stream.client.read_on()
        with pytest.raises(RequestError, match="gone"):
            await ending
        assert stream.texts() == ["a", "b"]

    asyncio.run(scenario())


def test_closing_abandons_what_runs() -> None:
    async def scenario() -> None:
        stream = ScriptedStream(choices=2)
        source = await stream.start()
        stream.worker.put("a", finish_reason="stop", choice=1)
        waiting = asyncio.ensure_future(source.ended())
        await asyncio.sleep(0)
        waiting.cancel()
        stream.worker.put("b")
        assert stream.worker.abandoned == stream.worker.ids[1:]
        source.close()
        source.close()
        assert sorted(stream.worker.abandoned) == stream.worker.ids

    asyncio.run(scenario())


@given(st.text())
def test_a_template_filled_is_the_event(text: str) -> None:
    def make(text: str) -> bytes:
        choice = ChatChunkChoice(0, ChatDelta(content=text))
        return event(Answer(id="i", object="o", created=1, model="data: \n\n", choices=[choice]))

    try:
        whole = make(text)
    except UnicodeEncodeError:  # a lone surrogate, which no detokenizer makes
        return
    assert EventTemplate(make).fill(text) == whole


@given(st.lists(st.tuples(st.floats(-1, 20), st.integers(0, 5)), max_size=20))
def test_a_histogram_is_written_as_prometheus_writes_it(observations: list[tuple[float, int]]) -> None:
    bounds = (0.5, 1, 2.5, 10)
    theirs = CollectorRegistry()
    mine = Histogram("h", "Help.", bounds)
    reference = PrometheusHistogram("h", "Help.", buckets=bounds, registry=theirs)
    for value, times in observations:
        mine.observe(value, times)
        for _ in range(times):
            reference.observe(value)

    class Ours(Collector):
        def collect(self) -> Iterator[Metric]:
            yield histogram_family("h", mine)

    ours = CollectorRegistry()
    ours.register(Ours())

    def lines(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line and "_sum" not in line]

    assert lines(ours) == lines(theirs)
