"""Server-sent events."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import closing, suppress
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import EngineError
from .connection import Connection
from .disconnect import ClientDisconnectedError, unless_disconnected

DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"
"""Which clients pass over."""
_encoder = msgspec.json.Encoder()


def event(message: msgspec.Struct) -> bytes:
    return b"data: " + _encoder.encode(message) + b"\n\n"


def named_event(message: msgspec.Struct) -> bytes:
    """An event of the kind that the message's tag says."""
    return b"event: %b\n%b" % (str(message.__struct_config__.tag).encode(), event(message))


class EventTemplate:
    """Events that differ in one text only: what is around it is encoded once.

    make(text) is the event with that text, which must appear in it exactly once.
    """

    def __init__(self, make: Callable[[str], bytes]) -> None:
        mark = "\x00the text\x00"
        self._before, self._after = make(mark).split(_encoder.encode(mark))

    def fill(self, text: str) -> bytes:
        """The same as make(text)."""
        return self._before + _encoder.encode(text) + self._after


class EventSink:
    """Where a stream's events go: straight to the client while it takes them.

    on_ready is called when `ready` has become true. Before that, the source keeps what it has.
    silent: whether nothing was written since this was last set.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._opened = False
        self.silent = True
        self.on_ready: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        return self._opened and self._connection.writable

    def write(self, events: bytes) -> None:
        if events:  # an empty chunk would end the body
            self.silent = False
            self._connection.write_chunk(events)

    def open(self) -> None:
        """The head of the response has been sent."""
        self._opened = True
        self._connection.on_writable = self.on_ready
        self.on_ready()

    async def until_ready(self) -> None:
        await self._connection.until_writable()

    def close(self) -> None:
        self._connection.on_writable = None


class EventSource(Protocol):
    """What writes events to a sink. `begun` and `ended` raise EngineError."""

    async def begun(self) -> None:
        """Wait for the first event."""

    async def ended(self) -> bytes:
        """Wait for the last events, which are not written but returned: they go with the end of the body."""

    def close(self) -> None:
        """Write no more events."""


class EventStream(Response):
    """Sends events as they come. Nothing is sent before the first, so that an early error has its own status.

    But who waits in silence is taken for dead by proxies: after every `silence` seconds of it a comment is sent, after
    the head if need be. An error after the head ends the stream with what `failed` makes of it. If the client goes away
    the source is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        start: Callable[[EventSink], Awaitable[EventSource]],
        headers: Mapping[str, str],
        *,
        failed: Callable[[EngineError], bytes],
        silence: float,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._start, self._failed = start, failed
        self._silence = silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection.of(scope)

        async def send_head() -> None:
            connection.begin_stream()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        with suppress(ClientDisconnectedError), unless_disconnected(connection):
            with closing(EventSink(connection)) as sink, closing(_Comments(sink, connection, send_head, self._silence)) as comments:
                try:
                    with closing(await self._start(sink)) as source:
                        await source.begun()
                        await comments.send_head()
                        sink.open()
                        last = await source.ended()
                except EngineError as error:
                    if not comments.head_sent:
                        raise
                    await comments.send_head()
                    last = self._failed(error)
            await send(connection.end_stream(last))


class _Comments:
    """Breaks the silence of a stream every `seconds`. head_sent: whether that of the answer has been, or is being."""

    def __init__(self, sink: EventSink, connection: Connection, send_head: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
        self._sink, self._connection = sink, connection
        self._send_head = send_head
        self._seconds = seconds
        self._early: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._break_silence)
        self.head_sent = False

    async def send_head(self) -> None:
        """Unless it has been."""
        if self._early is not None:
            await self._early
        elif not self.head_sent:
            self.head_sent = True
            await self._send_head()

    def _break_silence(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._break_silence)
        if not self.head_sent:
            self._early = self._loop.create_task(self._send_head())
            self._early.add_done_callback(lambda _: self._comment())
            self.head_sent = True
        elif self._sink.silent:
            self._comment()
        self._sink.silent = True

    def _comment(self) -> None:
        if self._connection.writable:
            self._connection.write_chunk(COMMENT)

    def close(self) -> None:
        self._timer.cancel()
        if self._early is not None:
            self._early.cancel()
