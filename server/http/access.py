"""Who may ask a server that listens on this machine only: nobody from a web page that its user did not mean to let in.

Any page can send requests to a local address, and any DNS name can be made to lead there. A page cannot
choose the headers Host and Origin, so these are looked at before anything else is done.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import RequestError
from .errors import error_response

LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
"""Pages that come from this machine itself."""


def is_loopback(host: str) -> bool:
    """Whether who listens at `host` is heard on this machine only."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class AccessMiddleware:
    """Refuses a foreign Host or Origin with 403.

    Host may be an IP address, `localhost`, or one of `hosts`; Origin the host that is asked, this machine, or one of `origins`.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset({"localhost", *map(str.lower, hosts)})
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        error = self._refusal(headers.get("host"), headers.get("origin"))
        await (self._app if error is None else error_response(error, scope["path"]))(scope, receive, send)

    def _refusal(self, host: str | None, origin: str | None) -> RequestError | None:
        if host is not None and not self._is_known(host):
            return RequestError(
                f"requests for the host {host!r} are not served here",
                status=403,
                code="host_not_allowed",
                hint="if it is a name of this machine, start the server with --allow-host and that name",
            )
        if origin is not None and not self._may_ask(origin, host):
            return RequestError(
                f"web pages of {origin!r} may not use this server",
                status=403,
                code="origin_not_allowed",
                hint="if they should, start the server with --allow-origin and that origin",
            )
        return None

    def _is_known(self, host: str) -> bool:
        name = _name(host)
        return name in self._hosts or _is_address(name)

    def _may_ask(self, origin: str, host: str | None) -> bool:
        if self._origins & {"*", origin} or re.fullmatch(LOCAL_ORIGIN, origin):
            return True
        return host is not None and origin in (f"http://{host}", f"https://{host}")


def _name(host: str) -> str:
    """Without port and brackets, in small letters; what is no host at all as it is."""
    try:
        return urlsplit(f"//{host}").hostname or host
    except ValueError:
        return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
