"""One worker process at a time: from its start to its end, and when another may take its place."""

import asyncio
import subprocess
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from ...errors import RequestError, WorkerError
from ...protocol import Failed, Ready, ToServer, ToWorker
from ..options import WorkerOptions
from .connection import WorkerConnection
from .failure import as_error
from .process import WorkerHandle, describe_exit, spawn_worker
from .progress import Progress

State = Literal["loading", "ready", "restarting", "damaged", "draining", "stopped"]
MAX_DEATHS = 3
DEATH_WINDOW = 60.0
STEPS_OF_A_WORKER_THAT_WORKS = 4
"""Deaths before one that computed so many are forgotten: whatever ended them, going on brings the requests further."""
EXIT_PATIENCE = 5.0


class WorkerLife:
    """The worker that runs, from `handle` on.

    state: see /health. ready: what the worker said it can take, once it has. phases: start-up phases of the
    current worker with their seconds. progress: of its steps. restarts: how many workers took the place of one that died.
    """

    def __init__(self, options: WorkerOptions, handle: WorkerHandle) -> None:
        self._options = options
        self._handle = handle
        self._connection: WorkerConnection | None = None
        self._state_changed = asyncio.Event()
        self._state_since = time.monotonic()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self.state: State = "loading"
        self.ready: Ready | None = None
        self.phases: dict[str, float] = {}
        self.restarts = 0
        self.serving = False
        self.failed: Failed | None = None
        self.progress = Progress()

    @property
    def ended(self) -> bool:
        """Whether no worker is wanted any more, whatever is still running."""
        return self.state in ("stopped", "damaged")

    def seconds_in_state(self) -> float:
        return time.monotonic() - self._state_since

    def last_phase(self) -> str | None:
        return next(reversed(self.phases), None)

    def set_state(self, state: State) -> None:
        self.state = state
        self._state_since = time.monotonic()
        self._state_changed.set()

    def check_open(self) -> None:
        """Raise RequestError if the server goes down."""
        if self.state == "damaged":
            raise damaged()
        if self.state in ("draining", "stopped"):
            raise shutting_down()

    async def until_ready(self) -> Ready:
        """Wait while a worker loads. Raises RequestError if the server goes down instead."""
        self.check_open()
        while not self.serving or self.ready is None:
            self._state_changed.clear()
            await self._state_changed.wait()
            self.check_open()
        return self.ready

    def send(self, message: ToWorker) -> None:
        """Tell the worker; where none is serving, nothing happens."""
        if self._connection is not None and self.serving:
            self._connection.send(message)

    async def serve(self, on_message: Callable[[ToServer], None]) -> None:
        """Hand on what the worker says, until its socket closes."""
        self._connection = await WorkerConnection.open(self._handle, on_message)
        if self.ended:
            return
        await self._connection.lost
        self.serving = False

    def became_ready(self, ready: Ready) -> None:
        self.ready = ready
        self.serving = True
        self.progress = Progress()

    async def until_lost(self) -> None:
        """Wait a little for a worker that was asked to end."""
        if self._connection is not None and self.serving:
            await asyncio.wait([self._connection.lost], timeout=EXIT_PATIENCE)

    def close(self) -> None:
        """Close the socket: `serve` returns."""
        if self._connection is not None:
            self._connection.close()

    def kill(self) -> None:
        """Close the socket and end the process."""
        self.close()
        self._handle.kill()

    async def reap(self) -> int | None:
        """The dead worker's exit code; None if it had to be killed."""
        try:
            code: int | None = await asyncio.to_thread(self._handle.process.wait, EXIT_PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        self._handle.kill()
        return code

    def check_death(self, code: int | None, *, explained: bool) -> None:
        """Raise EngineError if another worker would not help: this one said why it failed, or too many died.

        explained: by a suspect, which the worker cannot be blamed for.
        """
        if self.failed is not None:
            raise as_error(self.failed)
        if explained:
            self._deaths.clear()
            return
        if self.progress.steps >= STEPS_OF_A_WORKER_THAT_WORKS:
            self._deaths.clear()
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == MAX_DEATHS and now - self._deaths[0] <= DEATH_WINDOW:
            raise WorkerError(
                f"the worker {describe_exit(code)}, {MAX_DEATHS} times within {DEATH_WINDOW:g} s",
                hint="its own messages are above; fewer --max-num-seqs or less --kv-memory help if memory ran out",
            )

    def restart(self) -> None:
        """Start a worker in the place of one that died. Raises WorkerError if it cannot be started."""
        self.restarts += 1
        self.phases = {}
        self.progress = Progress()
        if self.state != "draining":
            self.set_state("restarting")
        self._handle = spawn_worker(self._options)


def damaged() -> RequestError:
    return RequestError(
        "this server has stopped: its artifact is damaged, and its log says where",
        status=503,
        code="artifact_damaged",
        hint="whoever runs it must put a whole artifact in its place",
    )


def shutting_down() -> RequestError:
    return RequestError(
        "the server is shutting down", status=503, code="shutting_down", hint="send the request to another server, or again in a while"
    )
