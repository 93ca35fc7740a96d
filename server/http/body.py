"""Reading a request's body."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import msgspec
from starlette.requests import ClientDisconnect, Request

from ...errors import RequestError
from ..dialects.schemas import decode_request
from .disconnect import ClientDisconnectedError

MAX_BODY_BYTES = 32 * 2**20
MAX_BYTES_OF_ALL = 256 * 2**20


class BodyMemory:
    """What the bodies of all requests that are being answered take, in bytes; a body counts until its answer has been sent."""

    def __init__(self, limit: int = MAX_BYTES_OF_ALL) -> None:
        self._left = limit

    @contextmanager
    def reader(self) -> Iterator[Callable[[int], None]]:
        """Yields what takes so many bytes, and raises RequestError (503) where there are no more. They are given back in the end."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if count > self._left:
                raise RequestError(
                    "the bodies of all requests together take too much memory",
                    status=503,
                    code="too_many_large_bodies",
                    hint="try again when others have been answered",
                )
            self._left -= count
            taken += count

        try:
            yield take
        finally:
            self._left += taken


class JsonBody:
    """A dependency: the body as a `kind`. FastAPI's own would read it with pydantic, and name no field in errors.

    Raises RequestError: 413 for a body beyond the limit, 415 for one that is not JSON, 400 for a wrong one, 503 for one too many.
    """

    def __init__(self, kind: type[msgspec.Struct]) -> None:
        self.kind = kind

    async def __call__(self, http: Request) -> AsyncIterator[msgspec.Struct]:
        _check_content_type(http.headers.get("content-type"))
        _check_encoding(http.headers.get("content-encoding"))
        with http.app.state.bodies.reader() as take:
            yield decode_request(await _read_body(http, take), self.kind)


def _check_content_type(value: str | None) -> None:
    """One must be given: a web page may send a body without asking first, but then not as JSON."""
    kind = (value or "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "text/json") and not kind.endswith("+json"):
        raise RequestError(
            f"the body must be JSON, but its content type is {kind or 'not given'}",
            status=415,
            code="unsupported_media_type",
            hint="with curl, add -H 'Content-Type: application/json'",
        )


def _check_encoding(value: str | None) -> None:
    if value is not None and value.strip().lower() not in ("", "identity"):
        raise RequestError(
            f"the body is encoded as {value}, which is not supported",
            status=415,
            code="unsupported_media_type",
            hint="send it as it is, without Content-Encoding",
        )


async def _read_body(request: Request, take: Callable[[int], None]) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > MAX_BODY_BYTES:
                raise _too_large()
            take(len(chunk))
            body += chunk
    except ClientDisconnect:
        raise ClientDisconnectedError from None
    return bytes(body)


def _too_large() -> RequestError:
    return RequestError(
        f"the body is larger than {MAX_BODY_BYTES} bytes", status=413, code="body_too_large", hint="ask in several requests"
    )
