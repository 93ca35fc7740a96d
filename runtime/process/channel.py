"""The worker's end of the socket to its parent. Nothing here blocks but `wait` and `finish`."""

import select
import socket
from dataclasses import dataclass
from typing import Any

import msgspec

from ...protocol import HEADER_BYTES, ToServer, ToWorker, body_length, decode_to_worker, encode

_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class Unreadable:
    """A message about the request `id` that does not follow the protocol."""

    id: str
    error: str


class _Named(msgspec.Struct):
    """What a message is about."""

    id: str


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

    One thread may send while another receives. Every method raises EOFError once the parent has
    closed its end.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = FrameReader()
        self._left = bytearray()

    @property
    def has_left(self) -> bool:
        """Whether something waits to be sent by `flush`."""
        return bool(self._left)

    def send(self, message: ToServer) -> None:
        """Send, or keep for later what the socket does not take now."""
        self._left += encode(message)
        self.flush()

    def flush(self) -> None:
        """Send what is left, as far as the socket takes it."""
        try:
            while self._left:
                del self._left[: self._socket.send(self._left)]
        except BlockingIOError:
            pass
        except ConnectionError as error:
            raise EOFError("the parent is gone") from error

    def finish(self) -> None:
        """Wait until everything has been sent."""
        while self._left:
            _poll((self._socket, select.POLLOUT))
            self.flush()

    def receive(self) -> list[ToWorker | Unreadable]:
        """Everything that has arrived, without waiting. Raises msgspec.DecodeError for what names no request."""
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
            if len(data) < _READ_BYTES:
                return messages

    def wait(self, *, unless: int) -> bool:
        """Sleep until something has arrived. False if instead the other end of the pipe `unless` was closed."""
        return unless not in _poll((self._socket, select.POLLIN), (unless, select.POLLIN))


def _poll(*wanted: tuple[socket.socket | int, int]) -> list[int]:
    """Sleep until one of these events, or the end of a stream; the file descriptors that had one."""
    poll = select.poll()
    for file, events in wanted:
        poll.register(file, events)
    return [descriptor for descriptor, _ in poll.poll()]


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
    except MemoryError:
        from ..validate import too_large  # which imports numpy, and that is not needed to start

        return Unreadable(msgspec.msgpack.decode(body, type=_Named).id, str(too_large()))
