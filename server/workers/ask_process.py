"""Asks a process of its own something, and ends it with who asked."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing, suppress

from .process import environment


async def ask_process(module: str, *arguments: str, request: Iterable[bytes] = ()) -> tuple[int, bytes]:
    """Exit code and standard output of `python -m MODULE ARGUMENTS`, whose standard input is `request` and does not end before it.

    A Ctrl-C in the terminal is not for it. Ends the process if it is cancelled. Raises OSError if it cannot be started.
    """
    ours, theirs = socket.socketpair()
    with closing(ours), theirs:
        # not by uvloop, which forks all of this process's memory and waits for that, as do all streams
        process = subprocess.Popen(
            (sys.executable, "-P", "-m", module, *arguments),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            env=environment(),
            process_group=0,
        )
        theirs.close()
        try:
            said = await _exchange(ours, request)
            return await asyncio.to_thread(process.wait), said
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


async def _exchange(ours: socket.socket, request: Iterable[bytes]) -> bytes:
    """All that the process says; nothing if it ends without reading all of the request."""
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        for piece in request:
            writer.write(piece)
        with suppress(ConnectionError):
            return await reader.read()
        return b""
    finally:
        writer.transport.abort()
