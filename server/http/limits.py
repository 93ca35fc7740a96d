"""An HTTP connection that takes no more from a client than a request needs, and waits for none forever.

uvicorn's own has no limit for a head, and no time in which anything must arrive or be taken.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ...errors import RequestError
from .errors import error_response

MAX_HEAD_BYTES = 64 * 2**10
"""Of a request's line and headers, and of what stands between two pieces of a body."""
MAX_HEADERS = 128
MAX_PIPELINED = 32
"""Requests that are read before the one before them is answered."""
LEAST_BODY_BYTES = 16 * 2**10
"""That must come in each `patience` seconds while a body is read."""
MAX_BYTES_OF_BODIES = 256 * 2**20
"""Of all requests that are being answered."""
LINGER_SECONDS = 1.0
"""In which a client that was refused may finish sending, to see the answer."""


class BodyMemory:
    """What the bodies of all requests may take, in bytes. left: of it."""

    def __init__(self, limit: int = MAX_BYTES_OF_BODIES) -> None:
        self.left = limit


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, with limits.

    patience: seconds that a client may take for a request's head, for each `LEAST_BODY_BYTES` of its body, and to
    take anything of an answer; for that, `send_patience` holds until the answer is complete.
    """

    def __init__(self, *arguments: Any, patience: float, bodies: BodyMemory, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._bodies = bodies
        self._taken = 0
        self.send_patience = self._patience = patience
        self._deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._deaf = False
        self._head_bytes = self._headers_left = self._unread = self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(self._late)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unread += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            known = error.__context__
            self._refuse(known if isinstance(known, RequestError) else _not_http(f"this is not HTTP/1.1: {error}"))
        else:
            if self._unread > MAX_HEAD_BYTES:
                self._refuse(_too_long())

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise RequestError(f"more than {MAX_PIPELINED} requests at once", hint="wait for answers")
        super().on_message_begin()
        self._head_bytes, self._headers_left = 0, MAX_HEADERS
        self._unset_keepalive_if_required()
        self._expect(self._late)

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        self._headers_left -= 1
        if self._headers_left < 0:
            raise _too_long()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unread = 0
        if self.parser.should_upgrade():
            return  # data_received goes on
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise _not_http("the request's path is not one") from None
        self._unset_keepalive_if_required()
        self._body_bytes = 0
        self._expect(self._check_body)

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        if not self.parser.should_upgrade():
            self._expect(None)
            super().on_message_complete()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _too_long()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """No other protocol is spoken here, and who asks for one may be answered in this one (RFC 9110, section 7.8).

        The parser takes what follows such a head for the other protocol: so the request is read again without the header.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(RequestError("this is no proxy", status=405, hint="ask it directly"))
            return
        head = [b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())]
        head += [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def take_body(self, count: int) -> None:
        """The body of the running request has so many more bytes, and holds them until that is answered.

        Raises RequestError (503) if all bodies together have too many.
        """
        if count > self._bodies.left:
            raise RequestError(
                "the bodies of all requests together take too much memory",
                status=503,
                code="too_many_large_bodies",
                hint="try again when others have been answered",
            )
        self._bodies.left -= count
        self._taken += count

    def _give_back(self) -> None:
        self._bodies.left += self._taken
        self._taken = 0

    def _expect(self, or_else: Callable[[], None] | None) -> None:
        """Call `or_else` if nothing else is expected within `patience` seconds."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if or_else is None else self.loop.call_later(self._patience, or_else)

    def _late(self) -> None:
        self._refuse(RequestError("the request took too long to arrive", status=408, code="request_timeout", hint="send it in one go"))

    def _check_body(self) -> None:
        if self.cycle.response_complete:
            self.transport.abort()  # it was answered early, and has had time to see it
        elif self.flow.read_paused or self._body_bytes >= LEAST_BODY_BYTES:
            self._body_bytes = 0
            self._expect(self._check_body)
        else:
            self._late()

    def _refuse(self, error: RequestError) -> None:
        """Read nothing more. Requests that came whole before are answered, and only then the connection ends."""
        self._deaf = True
        self._expect(None)
        newest: RequestResponseCycle | None = self.cycle
        if newest is None or newest.response_complete:
            self._send_refusal(error)
        elif not newest.more_body:
            newest.keep_alive = False
        elif newest is self._running and not newest.response_started:
            self._send_refusal(error)
            _disconnect(newest)
        else:
            self.transport.abort()

    def _send_refusal(self, error: RequestError) -> None:
        path = getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")
        answer = error_response(error, path)
        headers = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
        self.transport.write(b"%bconnection: close\r\n%b\r\n%b" % (STATUS_LINE[answer.status_code], headers, bytes(answer.body)))
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                _disconnect(cycle)
        self.pipeline.clear()
        self._give_back()
        self._deaf = True
        self._expect(None)
        self._unset_keepalive_if_required()
        if self._send_deadline is not None:
            self._send_deadline.cancel()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._give_back()
        self.send_patience = self._patience
        self._watch_sending()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size() == 0:
            super().timeout_keep_alive_handler()
        else:  # it is still reading, or `_watch_sending` will tell
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def _watch_sending(self, before: int | None = None) -> None:
        """Give up a client that takes nothing of what waits for it. before: how many bytes waited `send_patience` seconds ago."""
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None
        if (waiting := self.transport.get_write_buffer_size()) == 0:
            return
        if before is not None and waiting >= before:
            self.transport.abort()
        else:
            self._send_deadline = self.loop.call_later(self.send_patience, self._watch_sending, waiting)


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Its application learns that nobody listens, and may write what it likes."""
    cycle.disconnected = True
    cycle.message_event.set()


def _not_http(message: str) -> RequestError:
    return RequestError(message, code="invalid_http", hint="speak HTTP/1.1, without TLS unless a proxy in front ends it")


def _too_long() -> RequestError:
    return RequestError(
        f"the request's line and headers have more than {MAX_HEAD_BYTES} bytes, or more than {MAX_HEADERS} headers",
        status=431,
        code="head_too_large",
        hint="what is long belongs in the body",
    )
