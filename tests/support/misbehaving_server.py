"""A server that answers every request with the bytes it is told, in pieces, and then hangs up or not."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(json: bytes) -> bytes:
    return chunk(b"data: " + json + b"\n\n")


class MisbehavingServer:
    """`connections` and `requests` count what came; a request is over at its body's end."""

    def __init__(self, pieces: Sequence[bytes], *, hang_up: bool) -> None:
        self.connections = self.requests = 0
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self._pieces = pieces
        self._hang_up = hang_up
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self.connections += 1
        try:
            while head := await _head(reader):
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])))
                self.requests += 1
                for piece in self._pieces:
                    writer.write(piece)
                    await writer.drain()
                if self._hang_up:
                    break
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def finish(self) -> None:
        """Wait until every client has gone."""
        await asyncio.gather(*self._running)


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@asynccontextmanager
async def misbehaving(pieces: Sequence[bytes], *, hang_up: bool = False) -> AsyncIterator[tuple[str, MisbehavingServer]]:
    """The server's address and the server. hang_up: close the connection after each answer."""
    behaviour = MisbehavingServer(pieces, hang_up=hang_up)
    server = await asyncio.start_server(behaviour.serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}", behaviour
    await behaviour.finish()
