"""How a stream's events leave: one per token to a client that reads, merged for one that does not."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from artifact_stand_in import byte_level_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as PrometheusHistogram

from engine.errors import EngineError, RequestError
from engine.protocol import Output, Ready, Submit
from engine.server.dialects.chat import _ChatStyle
from engine.server.dialects.params import GenerationParams
from engine.server.dialects.planning import Ask, ModelLimits, Prompt
from engine.server.dialects.responses import Answer, ChatChunkChoice, ChatDelta
from engine.server.generation import Observer
from engine.server.histogram import Histogram
from engine.server.http.answering import _Writer
from engine.server.http.connection import Connection
from engine.server.http.sse import DONE, EventSink, EventTemplate, event
from engine.server.service import Service
from engine.server.text.text import Text, TextSpec
from engine.server.workers.dispatch import Receiver

TOKENIZER = byte_level_tokenizer()


class Client:
    """Stands for the connection to a client. `writable` is whether it reads."""

    def __init__(self) -> None:
        self.writable = True
        self.on_writable: Callable[[], None] | None = None
        self.chunks: list[bytes] = []
        self._reads = asyncio.Event()
        self._reads.set()

    def write_chunk(self, body: bytes) -> None:
        assert body, "an empty chunk ends the body"
        self.chunks.append(body)

    async def until_writable(self) -> None:
        await self._reads.wait()

    def stop_reading(self) -> None:
        self.writable = False
        self._reads.clear()

    def read_on(self) -> None:
        self.writable = True
        self._reads.set()
        if self.on_writable is not None:
            self.on_writable()


class Worker:
    """Stands for the worker and the dispatch to it: the test says what is computed."""

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.ids: list[str] = []
        self.abandoned: list[str] = []

    async def hold(self, timeout: float) -> Ready:
        return Ready(num_blocks=100, max_tokens=1600, max_batch_tokens=512, max_num_seqs=4)

    def generate(self, submits: Sequence[Submit], receiver: Receiver) -> None:
        self.receiver = receiver
        self.ids = [submit.id for submit in submits]

    def abandon(self, id: str) -> None:
        self.abandoned.append(id)

    def put(self, text: str, *, choice: int = 0, finish_reason: Any = None) -> None:
        assert self.receiver is not None
        self.receiver.put(Output(self.ids[choice], TOKENIZER.encode(text).ids, finish_reason=finish_reason))

    def fail(self, error: EngineError) -> None:
        assert self.receiver is not None
        self.receiver.fail(error)


class Stream:
    """A chat stream between the two."""

    def __init__(self, **ask: Any) -> None:
        self.client, self.worker = Client(), Worker()
        self.sink = EventSink(cast(Connection, self.client))
        text = Text(TOKENIZER, TextSpec(bos_token=None, eos_token=None, bos_token_id=None, eos_token_ids=[], add_bos=False), None)
        service = Service(
            model="m",
            created=0,
            limits=ModelLimits(max_context=1000, vocab_size=TOKENIZER.get_vocab_size()),
            text=text,
            worker=cast(Any, SimpleNamespace(dispatch=self.worker)),
            metrics=cast(Any, Observer()),
            hold_timeout=1.0,
        )
        asked = Ask(
            prompts=[Prompt([1, 2], continues=False)],
            params=GenerationParams(**ask.pop("params", {})),
            param="messages",
            max_tokens=50,
            **ask,
        )
        self._writer = _Writer(service, asked, _ChatStyle(text.token_bytes, False), with_usage=False)

    async def start(self) -> Any:
        return await self._writer.stream(self.sink)

    def texts(self, *more: bytes) -> list[str]:
        """The text of every event that has been written, the opening ones left out."""
        data = b"".join([*self.client.chunks, *more]).removesuffix(DONE)
        events = [msgspec.json.decode(line.removeprefix(b"data: ")) for line in data.split(b"\n\n") if line]
        deltas = [event["choices"][0]["delta"] for event in events]
        return [delta.get("content", "") for delta in deltas if "role" not in delta]


def test_one_event_per_token_to_a_client_that_reads() -> None:
    async def scenario() -> None:
        stream = Stream()
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
        stream = Stream()
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
        stream = Stream(choices=2)
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
        stream = Stream()
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
        stream = Stream(choices=2)
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
    def make(text: str) -> Answer:
        return Answer(id="i", object="o", created=1, model="data: \n\n", choices=[ChatChunkChoice(0, ChatDelta(content=text))])

    try:
        whole = event(make(text))
    except UnicodeEncodeError:  # a lone surrogate, which no detokenizer makes
        return
    assert EventTemplate(make).fill(text) == whole


@given(st.lists(st.tuples(st.floats(-1, 20), st.integers(0, 5)), max_size=20))
def test_a_histogram_is_written_as_prometheus_writes_it(observations: list[tuple[float, int]]) -> None:
    bounds = (0.5, 1, 2.5, 10)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("h", "Help.", bounds)
    ours.register(mine)
    reference = PrometheusHistogram("h", "Help.", buckets=bounds, registry=theirs)
    for value, times in observations:
        mine.observe(value, times)
        for _ in range(times):
            reference.observe(value)

    def lines(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line and "_sum" not in line]

    assert lines(ours) == lines(theirs)
