"""The server's end of the socket to the worker: frames in, frames out."""

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from ...protocol import HEADER_BYTES, ToServer, ToWorker, body_length, decode_to_server, encode
from .process import WorkerHandle


class WorkerConnection(asyncio.Protocol):
    """Calls `on_message` for each message of the worker; `lost` is done when the socket is.

    A message that does not decode ends the connection: what follows it cannot be trusted.
    """

    def __init__(self, on_message: Callable[[ToServer], None]) -> None:
        self._on_message = on_message
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, handle: WorkerHandle, on_message: Callable[[ToServer], None]) -> "WorkerConnection":
        handle.socket.setblocking(False)
        _, connection = await asyncio.get_running_loop().create_unix_connection(lambda: cls(on_message), sock=handle.socket)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from asyncio's

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        frames = memoryview(data)
        start = 0
        while len(data) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            end = body + body_length(frames[start:body])
            if len(data) < end:
                break
            try:
                message = decode_to_server(frames[body:end])
            except msgspec.DecodeError:
                self.close()
                return
            start = end
            self._on_message(message)
        self._rest = data[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, message: ToWorker) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
