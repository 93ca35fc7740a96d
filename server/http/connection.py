"""An HTTP connection that a response may write to directly, and that says when the client is gone."""

from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_EXTENSION = "engine.connection"


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection. Its public way to write a body is a coroutine, so that every
    token of every stream would have to wake a task; here it is a call.

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
        self.flow.resume_reading()

    async def until_writable(self) -> None:
        await self.flow.drain()

    def write_chunk(self, body: bytes) -> None:
        """One chunk of a body whose head has been sent without a content length (RFC 9112, section 7.1)."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
