"""Server-sent events."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import EngineError
from .disconnect import ClientDisconnectedError, unless_disconnected
from .http_errors import error_answer

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


def event(message: msgspec.Struct) -> bytes:
    return b"data: " + _encoder.encode(message) + b"\n\n"


class EventStream(Response):
    """Sends events as they come. Nothing is sent before the first, so that an early error has its own status.

    An error after that is sent as an event. A client that goes away ends the generator at once.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnectedError):
            await unless_disconnected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        started = False
        async with aclosing(self._events) as events:
            try:
                async for chunk in events:
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        started = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except EngineError as error:
                if not started:
                    raise
                await send({"type": "http.response.body", "body": event(error_answer(error)) + DONE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
