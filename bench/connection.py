"""HTTP connections that cost as little as possible per token that they carry."""

import asyncio
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from ..errors import UsageError
from .stream import Exchange

_CLOSED = "the server closed the connection"


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where requests go, and the part of a request that is always the same."""

    host: str
    port: int
    encrypted: bool
    path: str
    head: bytes

    @classmethod
    def parse(cls, url: str, *, path: str, api_key: str | None = None) -> "Server":
        """url: http(s)://HOST[:PORT][/PREFIX], with or without /v1. path: below /v1. Raises UsageError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not a server's address", hint="write http://HOST:PORT")
        encrypted = parts.scheme == "https"
        path = f"{parts.path.rstrip('/').removesuffix('/v1')}/v1/{path}"
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Content-Type: application/json"]
        lines += [f"Authorization: Bearer {api_key}"] if api_key else []
        head = "\r\n".join([*lines, "Content-Length: "]).encode()
        return cls(host=parts.hostname, port=port or (443 if encrypted else 80), encrypted=encrypted, path=path, head=head)

    def post(self, body: bytes) -> bytes:
        """A whole request."""
        return self.head + f"{len(body)}\r\n\r\n".encode() + body


class Pool:
    """Connections to one server, kept alive and used again."""

    def __init__(self, server: Server, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def send(self, message: bytes, exchange: Exchange) -> None:
        """Send a request and wait until its answer is over. What goes wrong is noted in the exchange."""
        try:
            connection = await self._connection()
            used = connection.used
            await connection.send(message, exchange)
            if used and exchange.status == 0 and not connection.reusable:
                # The server closed the idle connection just when this request set out on it.
                exchange.failure = exchange.end_s = None
                self._discard(connection)
                connection = await self._connect()
                await connection.send(message, exchange)
        except OSError as error:
            exchange.failure, exchange.end_s = f"cannot connect: {error}", self._clock.now()
            return
        if connection.reusable:
            self._idle.append(connection)
        else:
            self._discard(connection)

    def close(self) -> None:
        """Break off whatever is still open."""
        for connection in [*self._open]:
            self._discard(connection)

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            self._discard(connection)
        return await self._connect()

    async def _connect(self) -> "_Connection":
        server, loop = self._server, asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._clock), server.host, server.port, ssl=server.encrypted or None
        )
        self._open.add(connection)
        return connection

    def _discard(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        connection.abort()


class _Connection(asyncio.Protocol):
    """One request after another. Also the receiver of httptools' callbacks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._exchange = Exchange(0.0)
        self._over: asyncio.Future[None] | None = None
        self.reusable = True
        self.used = False
        """Whether a request has been answered here before."""

    async def send(self, message: bytes, exchange: Exchange) -> None:
        self._exchange = exchange
        self._over = asyncio.get_running_loop().create_future()
        if self.reusable:
            self._transport.write(message)
        else:  # it was closed as soon as it was open
            self._end(_CLOSED)
        await self._over

    def abort(self) -> None:
        self.reusable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now = self._clock.now()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"the answer is not HTTP: {error}")
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._now = self._clock.now()
        self._end(f"the connection broke: {error}" if error else None if self._exchange.pieces else _CLOSED)

    def on_headers_complete(self) -> None:
        self._exchange.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._exchange.pieces.append((self._now, data))

    def on_message_complete(self) -> None:
        self._exchange.whole = True
        self.reusable = self._parser.should_keep_alive()
        self.used = True
        self._end(None)

    def _end(self, failure: str | None) -> None:
        if self._over is None or self._over.done():
            return
        self._exchange.end_s = self._now
        self._exchange.failure = failure
        self._over.set_result(None)
