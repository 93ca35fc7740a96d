"""The API key."""

import hmac

from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from ...errors import RequestError


class ApiKey(SecurityBase):
    """A dependency that lets requests with `Authorization: Bearer <key>` or `X-Api-Key: <key>` through.

    It is asked before a body is read. Raises RequestError (401).
    """

    def __init__(self, api_key: str) -> None:
        self.scheme_name = "API key"
        self.model = HTTPBearer(description="or the header X-Api-Key")
        self._key = api_key.encode()

    async def __call__(self, http: Request) -> None:
        scheme, _, key = http.headers.get("authorization", "").partition(" ")
        given = [http.headers.get("x-api-key", ""), key if scheme.lower() == "bearer" else ""]
        if not any(hmac.compare_digest(each.strip().encode("latin-1"), self._key) for each in given):
            raise RequestError(
                "missing or wrong API key", status=401, code="invalid_api_key", hint="send the key as `Authorization: Bearer <key>`"
            )
