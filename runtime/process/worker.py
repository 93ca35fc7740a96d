"""The process that computes: `python -P -m engine.runtime.process.worker --fd N --artifacts DIR`. Started by the server.

It speaks the protocol over the socket N. It exits with 0 after Drain or when the parent goes away,
with an EngineError's code and after sending Failed when it cannot start, and with 8 when a step
fails, which another worker may well survive. Signals are the parent's
business: a Ctrl-C in the terminal reaches the whole group, and requests are to be finished.
"""

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ... import heap
from ...cpus import parse_cpus
from ...errors import EngineError, WorkerError
from ...options.runtime import RuntimeOptions
from ...protocol import Failed, Phase
from ..capacity.machine import share_with
from .channel import Channel

if TYPE_CHECKING:
    from ..core import EngineCore

SWITCH_SECONDS = 5e-4
"""How long the thread that computes may have to wait for the one that talks, between two steps."""


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until it is no longer needed; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.disable()  # collecting while modules are imported costs 0.2 s and finds nothing
    heap.use_one_arena()
    parsed = _parse(arguments)
    parent = socket.socket(fileno=parsed.fd)
    threading.Thread(target=_exit_with_parent, args=(parsed.fd,), name="exit-with-parent", daemon=True).start()
    channel = Channel(parent)
    try:
        return _run(parsed, channel)
    except EOFError:
        return 0


def _run(parsed: argparse.Namespace, channel: Channel) -> int:
    try:
        if (since_exec := _seconds_since_exec()) is not None:
            channel.send(Phase("python", since_exec))
        core = _load(parsed, channel)
    except EOFError:
        raise
    except EngineError as error:
        return _fail(channel, error)
    except Exception as error:
        _print_traceback()
        return _fail(channel, WorkerError(f"{type(error).__name__}: {error}", hint="the worker's traceback is on stderr"))
    from .serving_loop import serve

    gc.freeze()  # what is loaded stays: later collections need not look at it
    gc.enable()
    channel.send(core.ready)
    try:
        serve(core, channel, parsed.artifacts)
    except EOFError:
        raise
    except Exception:
        _print_traceback()
        return WorkerError.exit_code
    return 0


def _print_traceback() -> None:
    with contextlib.suppress(OSError):  # nobody may be reading
        traceback.print_exc()


def _load(parsed: argparse.Namespace, channel: Channel) -> "EngineCore":
    options = RuntimeOptions(**{option.name: getattr(parsed, option.name) for option in fields(RuntimeOptions)})
    started = time.perf_counter()
    share_with(parsed.workers, parse_cpus(parsed.cpus))
    from ..core import EngineCore
    from . import import_guard

    import_guard.install()
    channel.send(Phase("imports", time.perf_counter() - started))
    if parsed.verify_weights or parsed.digest is not None:
        _verify(parsed, channel)
    return EngineCore.load(parsed.artifacts, options, on_phase=lambda name, seconds: channel.send(Phase(name, seconds)))


def _verify(parsed: argparse.Namespace, channel: Channel) -> None:
    """The artifact is the one that is wanted, and its weights are those that were built."""
    from ...artifacts import check_machine, check_weights, load_manifest

    started = time.perf_counter()
    manifest = load_manifest(parsed.artifacts, digest=parsed.digest)
    if parsed.verify_weights:
        check_machine(manifest)  # which is quicker
        check_weights(parsed.artifacts, manifest)
        channel.send(Phase("verify_weights", time.perf_counter() - started))


def _fail(channel: Channel, error: EngineError) -> int:
    channel.send(Failed(error=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code))
    channel.finish()
    return error.exit_code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine.runtime.process.worker", allow_abbrev=False)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--digest")
    parser.add_argument("--verify-weights", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus", default="")
    for option in fields(RuntimeOptions):
        kind = str if isinstance(option.default, str) else int
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default)
    return parser.parse_args(arguments)


def _exit_with_parent(fd: int) -> None:
    """End the process when the other end of the socket closes, even in the middle of a long step."""
    poll = select.poll()
    poll.register(fd, getattr(select, "POLLRDHUP", 0))
    poll.poll()  # hang-ups and errors are reported whether asked for or not
    os._exit(0)


def _seconds_since_exec() -> float | None:
    """How long ago the kernel started this process, None where /proc does not tell."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # taking the process apart module by module takes longer than all the rest of the way out
