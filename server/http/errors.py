"""Errors as the clients of the API that was asked expect them."""

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...errors import EngineError, RequestError
from ..dialects.answers import ErrorAnswer, ErrorBody
from ..dialects.messages_api.errors import is_messages_path, messages_error

RETRY_AFTER_SECONDS = 1
"""Where nobody knows how long it takes."""
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def json_response(message: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(message), status_code=status, headers=headers, media_type="application/json")


def error_answer(error: EngineError) -> ErrorAnswer:
    """As OpenAI's clients expect it."""
    status = error.status if isinstance(error, RequestError) else 500
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param, code = (error.param, error.code) if isinstance(error, RequestError) else (None, "internal_error")
    return ErrorAnswer(ErrorBody(str(error), kind, param, code))


def error_response(error: EngineError, path: str) -> Response:
    """path: what was asked for."""
    status = error.status if isinstance(error, RequestError) else 500
    known = error.retry_after if isinstance(error, RequestError) else None
    seconds = RETRY_AFTER_SECONDS if known is None else math.ceil(known)
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": str(seconds)}}.get(status)
    body = messages_error(error) if is_messages_path(path) else error_answer(error)
    return json_response(body, status=status, headers=headers)


async def on_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return error_response(error, request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """An unknown path or method."""
    assert isinstance(error, HTTPException)
    message = {404: f"there is no {request.url.path} here", 405: f"{request.url.path} does not take {request.method}"}.get(
        error.status_code, error.detail
    )
    response = error_response(RequestError(message, status=error.status_code, hint=_hint(request)), request.url.path)
    response.headers.update(error.headers or {})
    return response


def _hint(request: Request) -> str:
    """Clients are given the base URL without its `/v1` more often than anything else."""
    path = request.url.path
    if not path.startswith("/v1/") and any(getattr(route, "path", None) == f"/v1{path}" for route in request.app.routes):
        return f"it is /v1{path}: give clients the base URL with /v1 at its end"
    return "docs/api.md lists the endpoints"


async def on_disconnect(_request: Request, _error: Exception) -> Response:
    """Nobody reads this answer."""
    return Response(status_code=499)


async def on_bug(request: Request, _error: Exception) -> Response:
    hint = "the server's log has the details"
    return error_response(RequestError("internal error", status=500, code="internal_error", hint=hint), request.url.path)
