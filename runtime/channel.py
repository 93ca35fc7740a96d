"""The worker's end of the socket to its parent. Nothing here blocks but `wait` and `finish`."""

import select
import socket
from dataclasses import dataclass
from typing import Any

import msgspec

from ..protocol import HEADER_BYTES, ToServer, ToWorker, body_length, decode_to_worker, encode

_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class Unreadable:
    """A message about the request `id` that does not follow the protocol."""

    id: str
    error: str


class FrameReader:
    """Cuts a byte stream into message bodies, whatever pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies completed by `data`, in order."""
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        at = 0
        while len(buffer) - at >= HEADER_BYTES:
            start = at + HEADER_BYTES
            end = start + body_length(bytes(buffer[at:start]))
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[start:end]))
            at = end
        del buffer[:at]
        return bodies


class Channel:
    """Framed messages over a stream socket. What the parent is slow to read waits in memory here.

    Every method raises EOFError once the parent has closed its end.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = FrameReader()
        self._outgoing = bytearray()
        self._poll = select.poll()

    def send(self, message: ToServer) -> None:
        """Send, or keep for later what the socket does not take now."""
        self._outgoing += encode(message)
        self._flush()

    def receive(self) -> list[ToWorker | Unreadable]:
        """Everything that has arrived, without waiting. Raises msgspec.DecodeError for what names no request."""
        if self._outgoing:
            self._flush()
        messages: list[ToWorker | Unreadable] = []
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return messages
            except ConnectionError as error:
                raise EOFError("the parent is gone") from error
            if not data:
                raise EOFError("the parent is gone")
            messages += [_decode(body) for body in self._reader.feed(data)]

    def wait(self) -> None:
        """Sleep until something has arrived, sending what is left meanwhile."""
        while not self._ready(select.POLLIN) & ~select.POLLOUT:
            self._flush()

    def finish(self) -> None:
        """Wait until everything has been sent."""
        while self._outgoing:
            self._ready(0)
            self._flush()

    def _ready(self, events: int) -> int:
        """Wait for these events, and for room to send if there is something to send."""
        if self._outgoing:
            events |= select.POLLOUT
        self._poll.register(self._socket, events)
        return self._poll.poll()[0][1]

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except ConnectionError as error:
            raise EOFError("the parent is gone") from error


def _decode(body: bytes) -> ToWorker | Unreadable:
    try:
        message: ToWorker = decode_to_worker(body)
        return message
    except msgspec.ValidationError as error:
        raw: Any = msgspec.msgpack.decode(body)
        id = raw.get("id") if isinstance(raw, dict) else None
        if not isinstance(id, str):
            raise
        return Unreadable(id, f"the request does not follow the protocol: {error}")
