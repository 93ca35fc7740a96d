"""The API key."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import RequestError
from .errors import error_response

OPEN_PATHS = frozenset({"/", "/health", "/metrics"})


class ApiKeyMiddleware:
    """Lets requests with `Authorization: Bearer <key>` or `X-Api-Key: <key>` through, and those for the page, of probes and of scrapers."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_authorized(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = RequestError(
            "missing or wrong API key", status=401, code="invalid_api_key", hint="send the key as `Authorization: Bearer <key>`"
        )
        await error_response(error)(scope, receive, send)

    def _is_authorized(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), key if scheme.lower() == "bearer" else ""]
        return any(hmac.compare_digest(each.strip().encode("latin-1"), self._key) for each in given)
