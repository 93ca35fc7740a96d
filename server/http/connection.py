"""An HTTP connection that a response may write to directly, and that says when the client is gone."""

from collections.abc import Callable
from typing import Any

from starlette.types import Scope

from .limits import LimitedConnection

STREAM_PATIENCE = 600.0
"""Seconds that the client of a stream may take nothing: it may think about every token."""
_EXTENSION = "engine.connection"


class Connection(LimitedConnection):
    """uvicorn's public way to write a body is a coroutine, so that every token of every stream would
    have to wake a task; here it is a call.

    writable: whether what is written goes out now. If not, it waits in memory.
    on_writable, on_lost: called when that is true again, and when the client has gone away.
    """

    writable = True

    on_writable: Callable[[], None] | None = None
    on_lost: Callable[[], None] | None = None

    @staticmethod
    def of(scope: Scope) -> "Connection":
        """The connection that a request came by."""
        connection: Connection = scope["extensions"][_EXTENSION]
        return connection

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: dict[str, Any] = {_EXTENSION: self}
        self.scope["extensions"] = extensions

    def pause_writing(self) -> None:
        super().pause_writing()
        self.writable = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def watch(self) -> None:
        """Read on, or the end of the connection would go unnoticed behind a large body."""
        if not self.transport.is_closing():
            self.flow.resume_reading()

    async def until_writable(self) -> None:
        await self.flow.drain()

    def begin_stream(self) -> None:
        """A body of unknown length will follow the head, which has not been sent.

        HTTP/1.0 knows no chunks: there the connection's end ends it.
        """
        self.send_patience = STREAM_PATIENCE
        assert self._running is not None
        if self._running.scope["http_version"] == "1.0":
            self._running.chunked_encoding = False

    def write_chunk(self, body: bytes) -> None:
        """A piece of such a body, once its head has been sent (RFC 9112, section 7.1)."""
        if not self.transport.is_closing():
            assert self._running is not None
            chunked = self._running.chunked_encoding
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)

    def end_stream(self, last: bytes) -> dict[str, Any]:
        """The message by which the application sends the body's last piece."""
        assert self._running is not None
        if not self._running.chunked_encoding:
            self._running.expected_content_length = len(last)
        return {"type": "http.response.body", "body": last, "more_body": False}
