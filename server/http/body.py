"""Reading a request's body."""

from functools import partial

import msgspec
from starlette.requests import ClientDisconnect, Request

from ...errors import RequestError
from ..dialects.decoding import decode_request
from ..dialects.json_values import check_values
from ..offload import offload
from .connection import Connection
from .disconnect import ClientDisconnectedError

MAX_BODY_BYTES = 32 * 2**20


class JsonBody:
    """A dependency: the body as a `kind`. FastAPI's own would read it with pydantic, and name no field in errors.

    Raises RequestError: 413 for a body beyond the limit, 415 for one that is not JSON, 400 for a wrong one, 503 for one too many.
    """

    def __init__(self, kind: type[msgspec.Struct]) -> None:
        self.kind = kind

    async def __call__(self, http: Request) -> msgspec.Struct:
        _check_content_type(http.headers.get("content-type"))
        _check_encoding(http.headers.get("content-encoding"))
        body = await _read_body(http)
        Connection.of(http.scope).watch()
        return await offload(len(body) // 16, partial(self._decode, body))

    def _decode(self, body: bytes) -> msgspec.Struct:
        check_values(body)
        return decode_request(body, self.kind)


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


async def _read_body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    connection = Connection.of(request.scope)
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > MAX_BODY_BYTES:
                raise _too_large()
            connection.take_body(len(chunk))
            body += chunk
    except ClientDisconnect:
        raise ClientDisconnectedError from None
    return bytes(body)


def _too_large() -> RequestError:
    return RequestError(
        f"the body is larger than {MAX_BODY_BYTES} bytes", status=413, code="body_too_large", hint="ask in several requests"
    )
