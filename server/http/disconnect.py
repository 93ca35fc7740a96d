"""Work that nobody waits for any more is dropped at once."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from .connection import Connection


class ClientDisconnectedError(Exception):
    """The client closed the connection before its answer was complete."""


@contextmanager
def unless_disconnected(connection: Connection) -> Iterator[None]:
    """Cancels the block when the client goes away.

    Raises ClientDisconnectedError after the block has cleaned up.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    connection.on_lost = leave
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnectedError from None
        raise
    finally:
        connection.on_lost = None


class WatchedRoute(APIRoute):
    """A route whose handler is cancelled when the client goes away. Streams see to that by themselves, after it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def watched(http: Request) -> Response:
            with unless_disconnected(Connection.of(http.scope)):
                return await handler(http)

        return watched
