"""Starts the worker. Standard library only, so that the worker's imports begin before ours are done."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, fields

from ...errors import WorkerError
from ...options.runtime import RuntimeOptions
from ..options import API_KEY_VARIABLE, WorkerOptions

_STDERR = 2


@dataclass(frozen=True)
class WorkerHandle:
    """A started worker and our end of the socket to it."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def kill(self) -> None:
        """End the worker at once and forget it. Safe to call twice."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def spawn_worker(options: WorkerOptions) -> WorkerHandle:
    """Returns as soon as the process exists. Raises WorkerError if it cannot be started.

    The worker has its own process group: a Ctrl-C in the terminal is for the server alone, which
    decides when the worker ends. If the server dies, the worker reads the end of the socket.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_start(error) from error
    with theirs:
        try:
            process = subprocess.Popen(
                [*_command(options), "--fd", str(theirs.fileno()), *_flags(options)],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                env=environment(),
            )
        except OSError as error:
            ours.close()
            raise _cannot_start(error) from error
    return WorkerHandle(process, ours)


def environment() -> dict[str, str]:
    """Of a process that the server starts: its own, without the API key, which is the server's alone."""
    return {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}


def _cannot_start(error: OSError) -> WorkerError:
    return WorkerError(f"the worker cannot be started: {error}", hint="a process needs memory, open files, and the Python that runs this")


def _command(options: WorkerOptions) -> tuple[str, ...]:
    return options.worker_command or (sys.executable, "-P", "-m", "engine.runtime.process.worker")


def _flags(options: WorkerOptions) -> list[str]:
    names = ["artifacts", "digest", *(each.name for each in fields(RuntimeOptions)), "workers", "cpus"]
    values = {name: getattr(options, name) for name in names}
    switches = ["--verify-weights"] if options.verify_weights == "before" else []
    given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return [*(part for flag in given for part in flag), *switches]


def describe_exit(code: int | None) -> str:
    """How a process ended, for a message."""
    if code is None:
        return "closed its socket"
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (the kernel does this when memory runs out)" if name == "SIGKILL" else "")
