"""Work that nobody waits for any more is dropped at once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from .connection import Connection


class ClientDisconnectedError(Exception):
    """The client closed the connection before its answer was complete."""


@contextmanager
def unless_disconnected(connection: Connection) -> Iterator[None]:
    """Cancels the block when the client goes away, once the request's body has been read.

    Raises ClientDisconnectedError after the block has cleaned up.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    connection.watch()
    connection.on_lost = leave
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnectedError from None
        raise
    finally:
        connection.on_lost = None
