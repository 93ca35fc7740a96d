"""GET /: the page for people, one file that takes nothing from elsewhere."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from ...errors import RequestError

_FILE = Path(__file__).with_name("page.html")
_HEADERS = {
    "cache-control": "no-cache",  # kept, but asked for again: a newer server has a newer page
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


async def page(http: Request) -> Response:
    body, headers = _page()
    is_known = headers["etag"] in http.headers.get("if-none-match", "")
    return Response(b"" if is_known else body, status_code=304 if is_known else 200, headers=headers, media_type="text/html")


async def no_page(_http: Request) -> Response:
    raise RequestError("there is no page here", status=404, hint="the server was started with --no-page; the API is under /v1")


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The file and its headers, read when someone first asks."""
    body = _FILE.read_bytes()
    tag = hashlib.sha256(body).hexdigest()[:32]
    return body, {**_HEADERS, "content-security-policy": _policy(body), "etag": f'"{tag}"'}


def _policy(body: bytes) -> str:
    """What the page may do: run its own script and style, ask its own server, and make nodes of text only (Trusted Types)."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(body, b'script')}",
            f"style-src {_source(body, b'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _source(body: bytes, tag: bytes) -> str:
    """The one element of its kind by its digest, as Content Security Policy Level 3 names it."""
    content = body.partition(b"<" + tag)[2].partition(b">")[2].partition(b"</" + tag)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
