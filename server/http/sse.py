"""Server-sent events."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, suppress
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import EngineError
from .connection import Connection
from .disconnect import ClientDisconnectedError, unless_disconnected

DONE = b"data: [DONE]\n\n"
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
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._opened = False
        self.on_ready: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        return self._opened and self._connection.writable

    def write(self, events: bytes) -> None:
        if events:  # an empty chunk would end the body
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

    def failed(self, error: EngineError) -> bytes:
        """The last events after an error."""

    def close(self) -> None:
        """Write no more events."""


class EventStream(Response):
    """Sends events as they come. Nothing is sent before the first, so that an early error has its own status.

    An error after that is sent as an event. If the client goes away the source is closed at once.
    """

    media_type = "text/event-stream"

    def __init__(self, start: Callable[[EventSink], Awaitable[EventSource]], headers: Mapping[str, str]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection.of(scope)
        with suppress(ClientDisconnectedError), unless_disconnected(connection):
            with closing(EventSink(connection)) as sink, closing(await self._start(sink)) as source:
                await source.begun()
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                sink.open()
                try:
                    last = await source.ended()
                except EngineError as error:
                    last = source.failed(error)
            await send({"type": "http.response.body", "body": last, "more_body": False})
