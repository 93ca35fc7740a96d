"""`engine serve`, its first moments: take the port, start the workers, and only then import the server.

Their imports take longest, so everything else happens beside them.
"""

import gc
import os
import socket
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from .options import ServeOptions
from .workers.process import spawn_worker
from .workers.replicas import options_of_replicas

BACKLOG = 2048


def serve(options: ServeOptions) -> int:
    """Serves until SIGTERM or SIGINT; the exit code. Requests in flight are finished first.

    Raises UsageError if the address cannot be listened on or the machine is too small for the replicas, ArtifactError if there is
    nothing to serve there or it is not signed as it must be, and WorkerError if no worker can be kept running.
    """
    if options.verify_key is not None:
        options = replace(options, digest=_signed_digest(options, options.verify_key))
    replicas = options_of_replicas(options)
    with listen(options.host, options.port) as listener:
        workers = []
        gc.disable()  # until all is loaded: what comes now stays
        try:
            for each in replicas:
                workers.append((each, spawn_worker(each)))
            _import_pydantic()
            from .serving import run_server

            return run_server(options, listener, workers)
        finally:
            for _, worker in workers:
                worker.kill()


def _import_pydantic() -> None:
    """Without looking for plugins in every package that is installed, or building FastAPI's models of OpenAPI documents before their use.

    Both together are a third of the time that FastAPI takes to import.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from pydantic import BaseModel

    BaseModel.model_config["defer_build"] = True


def _signed_digest(options: ServeOptions, key: Path) -> str:
    """Of the artifact, whose signature must be right. Nothing else of it has been read by then."""
    from ..artifacts import load_manifest
    from ..artifacts.signature import verify_signature

    digest = load_manifest(options.artifacts, digest=options.digest).digest
    verify_signature(options.artifacts, digest, key)
    return digest


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: clients that come early wait in its queue. Raises UsageError."""
    if not 0 <= port <= 65535:
        raise UsageError(f"there is no port {port}", hint="ports are 0 to 65535; 0 picks a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(
            f"the host {host!r} is unknown: {error}", hint="use 127.0.0.1 for this machine only, 0.0.0.0 for every network"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_dead_clients(listener)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}", hint="choose another --port or --host, or stop what uses it"
        ) from None
    return listener


def _notice_dead_clients(listener: socket.socket) -> None:
    """Of connections that it accepts, which inherit this: while an answer is computed nothing is sent, and a client whose machine is gone
    would never be noticed. It also keeps the connection known to routers in between."""
    for level, name, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    ):
        listener.setsockopt(level, name, value)
