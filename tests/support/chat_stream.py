"""A stream between a client that may stop reading and a worker of which the test says what it computes."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
from artifact_stand_in import byte_level_tokenizer

from engine.errors import EngineError
from engine.protocol import Output, Ready, Submit, TokenLogprob
from engine.server.dialects.chat import _ChatStyle
from engine.server.dialects.choices import ChoicesWriter
from engine.server.dialects.params import GenerationParams
from engine.server.dialects.planning import Ask, ModelLimits, Prompt
from engine.server.dialects.schemas import ChatRequest
from engine.server.generation import Observer
from engine.server.http import answering
from engine.server.http.answering import Dialect, Stream
from engine.server.http.connection import Connection
from engine.server.http.sse import DONE, EventSink
from engine.server.parsing.names import FormNames
from engine.server.service import Service
from engine.server.text.assembler import Finish
from engine.server.text.text import Text, TextSpec
from engine.server.tokenizing import Tokenizing
from engine.server.workers.dispatch import Receiver

TOKENIZER = byte_level_tokenizer()
MakeDialect = Callable[[Ask], Dialect]


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
        tokens = TOKENIZER.encode(text).ids
        self.receiver.put(Output(self.ids[choice], tokens, [TokenLogprob(-0.5, [])] * len(tokens), finish_reason))

    def fail(self, error: EngineError) -> None:
        assert self.receiver is not None
        self.receiver.fail(error)


class ScriptedStream:
    """A stream between the two, of chat completions unless `dialect` makes another one of its ask."""

    def __init__(self, dialect: MakeDialect | None = None, **ask: Any) -> None:
        self.client, self.worker = Client(), Worker()
        self.sink = EventSink(cast(Connection, self.client))
        text = Text(TOKENIZER, TextSpec(special_tokens={}, bos_token_id=None, eos_token_ids=[], add_bos=False), None)
        self._service = Service(
            model="m",
            created=0,
            limits=ModelLimits(max_context=1000, vocab_size=TOKENIZER.get_vocab_size()),
            text=text,
            tokenizing=Tokenizing(text, Path(), ""),
            forms=FormNames(),
            fleet=cast(Any, self.worker),
            metrics=cast(Any, Observer()),
            hold_timeout=1.0,
        )
        self._ask = Ask(
            prompts=[Prompt([1, 2], continues=False)],
            params=GenerationParams(**ask.pop("params", {})),
            param="messages",
            max_tokens=50,
            **ask,
        )
        self._dialect = (dialect or partial(chat_dialect, text))(self._ask)

    async def start(self) -> Any:
        return Stream(self._service, await self._service.prepare(self._ask), self._dialect, self.sink)

    async def whole(self) -> Any:
        return msgspec.json.decode(msgspec.json.encode(await answering.whole(self._service, self._ask, self._dialect)))

    def failed(self, error: EngineError) -> bytes:
        """The events that end the stream after an error."""
        return self._dialect.error(error)

    def texts(self, *more: bytes) -> list[str]:
        """The text of every event that has been written, the opening ones left out."""
        deltas = [event["choices"][0]["delta"] for event in events(*self.client.chunks, *more)]
        return [delta.get("content", "") for delta in deltas if "role" not in delta]


def chat_dialect(text: Text, ask: Ask) -> Dialect:
    return ChoicesWriter("m", ask, _ChatStyle(text.token_bytes, ChatRequest(messages=[]), ask), with_usage=False)


def events(*chunks: bytes) -> list[Any]:
    """The events that chunks of a body are, the end left out."""
    data = b"".join(chunks).removesuffix(DONE)
    return [msgspec.json.decode(line.removeprefix(b"data: ")) for line in data.split(b"\n\n") if line]


def streamed(dialect: MakeDialect, chunks: Sequence[str], *, merged: bool = False, finish_reason: Finish = "stop", **ask: Any) -> bytes:
    """The body of a stream whose answer comes in these chunks. merged: to a client that reads at last only."""

    async def scenario() -> bytes:
        stream = ScriptedStream(dialect, **ask)
        source = await stream.start()
        stream.worker.put(chunks[0])
        await source.begun()
        stream.sink.open()
        if merged:
            stream.client.stop_reading()
        for chunk in chunks[1:]:
            stream.worker.put(chunk)
        stream.worker.put("!" if finish_reason == "stop" else "", finish_reason=finish_reason)
        stream.client.read_on()
        last = await source.ended()
        return b"".join([*stream.client.chunks, last])

    return asyncio.run(scenario())


def whole(dialect: MakeDialect, chunks: Sequence[str], *, finish_reason: Finish = "stop", **ask: Any) -> Any:
    """The whole answer that comes in these chunks, as a client reads it."""

    async def scenario() -> Any:
        stream = ScriptedStream(dialect, **ask)
        answer = asyncio.ensure_future(stream.whole())
        await asyncio.sleep(0)
        for chunk in chunks:
            stream.worker.put(chunk)
        stream.worker.put("!" if finish_reason == "stop" else "", finish_reason=finish_reason)
        return await answer

    return asyncio.run(scenario())
