"""Keeps a worker running and carries requests to it, over its death if need be."""

import asyncio
import math
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from ... import errors
from ...errors import EngineError, RequestError, WorkerError
from ...protocol import Abort, Drain, Failed, Output, Phase, Ready, Stats, StepDone, Submit, ToServer
from ..options import WorkerOptions
from .connection import WorkerConnection
from .process import WorkerHandle, describe_exit, spawn_worker

State = Literal["loading", "ready", "restarting", "damaged", "draining", "stopped"]
Weights = Literal["unchecked", "whole", "damaged"]
MAX_DEATHS = 3
DEATH_WINDOW = 60.0
EXIT_PATIENCE = 5.0


class Receiver(Protocol):
    """Where the outputs of a request's sequences go, as they arrive. Raises nothing."""

    def put(self, output: Output) -> None:
        """Called in the midst of all other requests' outputs: it must not take long."""

    def fail(self, error: EngineError) -> None:
        """There will be no more outputs."""


@dataclass(slots=True)
class _Live:
    """A sequence in flight: enough to start it again where it stopped."""

    submit: Submit
    receiver: Receiver
    received: list[int] = field(default_factory=list)

    def resumed(self) -> Submit:
        return msgspec.structs.replace(self.submit, generated=self.submit.generated + self.received)


class WorkerClient:
    """One worker at a time, from `handle` on. `run()` must be running for anything to happen.

    state: see /health. phases: start-up phases of the current worker with their seconds.
    stats: totals over all workers so far. ready: what the worker said it can take, once it has.
    weights: whether they are known to be those that were built.
    """

    def __init__(
        self,
        options: WorkerOptions,
        handle: WorkerHandle,
        *,
        max_queue: int | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._options = options
        self._handle = handle
        self._max_queue = max_queue
        self._log = log
        self._live: dict[str, _Live] = {}
        self._connection: WorkerConnection | None = None
        self._state_changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._failed: Failed | None = None
        self._past = Stats()
        self._current = Stats()
        self._serving = False
        self._probation: deque[str] = deque()
        self._held = 0
        self._state_since = time.monotonic()
        self.state: State = "loading"
        self.ready: Ready | None = None
        self.phases: dict[str, float] = {}
        self.restarts = 0
        self.weights: Weights = "unchecked"

    # --- requests ---------------------------------------------------------------------------

    def generate(self, submits: Sequence[Submit], receiver: Receiver) -> None:
        """Start these sequences, all or none. `receiver` gets their outputs until the last or until they are abandoned.

        Raises RequestError if the queue is full or the server is going down.
        """
        self._check_open()
        self._check_size(len(submits))
        self._check_room(len(submits))
        for submit in submits:
            self._live[submit.id] = _Live(submit, receiver)
            if self._probation:
                self._probation.append(submit.id)
            else:
                self._send(submit)
        self._idle.clear()

    def abandon(self, id: str) -> None:
        """No more outputs of this sequence; the worker forgets it at once. Unknown ids are ignored."""
        if self._forget(id):
            self._send(Abort(id))

    async def until_ready(self) -> Ready:
        """Waits while a worker loads. Raises RequestError if the server goes down instead."""
        self._check_open()
        while not self._serving or self.ready is None:
            self._state_changed.clear()
            await self._state_changed.wait()
            self._check_open()
        return self.ready

    async def hold(self, timeout: float) -> Ready:
        """A request waits until it can start, `timeout` seconds at most.

        Raises RequestError (503) after that, and at once if too many requests wait already.
        """
        if not self._serving:
            self._check_room(self._held + 1)
        self._held += 1
        try:
            async with asyncio.timeout(timeout):
                return await self.until_ready()
        except TimeoutError:
            raise RequestError(
                f"the model is still loading ({self.last_phase() or 'starting'})",
                status=503,
                code="loading",
                hint="try again in a few seconds; GET /health answers 200 when it is ready",
            ) from None
        finally:
            self._held -= 1

    @property
    def live(self) -> int:
        """Sequences running or waiting, and requests that wait for a worker."""
        return len(self._live) + self._held

    def seconds_in_state(self) -> float:
        return time.monotonic() - self._state_since

    def last_phase(self) -> str | None:
        return next(reversed(self.phases), None)

    @property
    def stats(self) -> Stats:
        return _plus(self._past, self._current)

    def _check_open(self) -> None:
        if self.state == "damaged":
            raise _damaged()
        if self.state in ("draining", "stopped"):
            raise RequestError("the server is shutting down", status=503, code="shutting_down")

    def _capacity(self) -> float:
        running = self.ready.max_num_seqs if self.ready else 0
        return math.inf if self._max_queue is None else running + self._max_queue

    def _check_size(self, wanted: int) -> None:
        if wanted > (capacity := self._capacity()):
            raise RequestError(f"{wanted} sequences in one request, but this server takes {capacity} at once", code="too_many_sequences")

    def _check_room(self, wanted: int) -> None:
        if len(self._live) + wanted > (capacity := self._capacity()):
            raise RequestError(
                f"{self.live} sequences are running or waiting, and no more than {capacity} may",
                status=503,
                code="overloaded",
                hint="try again after the time given in Retry-After",
            )

    def _forget(self, id: str) -> bool:
        known = self._live.pop(id, None) is not None
        self._acquit(id)
        if not self._live:
            self._idle.set()
        return known

    def _send(self, message: Submit | Abort | Drain) -> None:
        if self._connection is not None and self._serving:
            self._connection.send(message)

    # --- the worker's life ------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `drain` or `stop`. Raises EngineError when no worker can be kept running."""
        try:
            while True:
                await self._serve_one_worker()
                if self._is_over():
                    return
                code = await self._reap()
                if self._is_over():
                    return
                self._after_death(code)
                self._handle = spawn_worker(self._options)
        except EngineError:
            self._stop(RequestError("the worker failed and could not be replaced", status=503, code="worker_failed"))
            raise
        finally:
            if self._connection is not None:
                self._connection.close()
            self._handle.kill()

    async def drain(self, timeout: float) -> None:
        """Take no more requests, let those in flight finish for up to `timeout` seconds, end the worker."""
        self._set_state("draining")
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            self._log(f"{len(self._live)} requests not finished after {timeout:g} s")
        self._fail_all(RequestError("the server is shutting down", status=503, code="shutting_down"))
        self._send(Drain())
        if self._connection is not None and self._serving:
            await asyncio.wait([self._connection.lost], timeout=EXIT_PATIENCE)
        self.stop()

    def condemn(self) -> None:
        """The weights are damaged: requests in flight fail, the worker is ended by `run`, and no other is started."""
        self.weights = "damaged"
        self._stop(_damaged(), "damaged")

    def stop(self) -> None:
        """End at once: requests in flight fail, the worker is killed by `run`."""
        self._stop(RequestError("the server is shutting down", status=503, code="shutting_down"))

    def _stop(self, error: RequestError, state: State = "stopped") -> None:
        self._set_state(state)
        self._fail_all(error)
        if self._connection is not None:
            self._connection.close()

    def _fail_all(self, error: EngineError) -> None:
        for id, live in list(self._live.items()):
            live.receiver.fail(error)
            self.abandon(id)

    async def _serve_one_worker(self) -> None:
        self._connection = await WorkerConnection.open(self._handle, self._on_message)
        if self.state in ("stopped", "damaged"):
            return
        await self._connection.lost
        self._serving = False

    async def _reap(self) -> int | None:
        """The dead worker's exit code; None if it had to be killed."""
        try:
            code: int | None = await asyncio.to_thread(self._handle.process.wait, EXIT_PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        self._handle.kill()
        return code

    def _after_death(self, code: int | None) -> None:
        """Raises EngineError if another worker would not help."""
        if self._failed is not None:
            raise _as_error(self._failed)
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == MAX_DEATHS and now - self._deaths[0] <= DEATH_WINDOW:
            raise WorkerError(
                f"the worker {describe_exit(code)}, {MAX_DEATHS} times within {DEATH_WINDOW:g} s",
                hint="its own messages are above; fewer --max-num-seqs or less --kv-memory help if memory ran out",
            )
        self._drop_suspect()
        self._log(f"the worker {describe_exit(code)}; starting another, {len(self._live)} sequences will go on")
        self._past = msgspec.structs.replace(self.stats, running=0, waiting=0, blocks_used=0, blocks_total=0)
        self._current = Stats()
        self.restarts += 1
        self.phases = {}
        if self.state != "draining":
            self._set_state("restarting")

    def _drop_suspect(self) -> None:
        """A request that takes every worker down with it must not take the server down as well."""
        if self._probation:
            suspect = self._probation[0]
            error = RequestError("the worker died twice while it had this request", status=500, code="worker_died")
            self._live[suspect].receiver.fail(error)
            self._forget(suspect)
        self._probation.clear()

    def _is_over(self) -> bool:
        return self.state in ("stopped", "damaged") or (self.state == "draining" and not self._live)

    def _set_state(self, state: State) -> None:
        self.state = state
        self._state_since = time.monotonic()
        self._state_changed.set()

    def _on_message(self, message: ToServer) -> None:
        match message:
            case StepDone(outputs=outputs, stats=stats):
                self._current = stats
                for output in outputs:
                    self._on_output(output)
            case Phase(name=name, seconds=seconds):
                self.phases[name] = seconds
                self._log(f"{name} {seconds:.2f} s")
            case Ready():
                self._on_ready(message)
            case Failed():
                self._failed = message

    def _on_ready(self, ready: Ready) -> None:
        self.ready = ready
        self._serving = True
        if self.restarts:
            self._probation.extend(self._live)
            self._try_next()
        else:
            for live in self._live.values():
                self._send(live.submit)
        self._set_state("draining" if self.state == "draining" else "ready")

    def _try_next(self) -> None:
        """After a death, one sequence after the other: if the new worker dies as well, it is clear of which."""
        if self._probation:
            self._send(self._live[self._probation[0]].resumed())

    def _acquit(self, id: str) -> None:
        if id in self._probation:
            first = self._probation[0] == id
            self._probation.remove(id)
            if first:
                self._try_next()

    def _on_output(self, output: Output) -> None:
        live = self._live.get(output.id)
        if live is None:
            return
        live.received += output.tokens
        if self._probation:
            self._acquit(output.id)
        if output.finish_reason is not None:
            self._forget(output.id)
        live.receiver.put(output)


def _damaged() -> RequestError:
    return RequestError("this server has stopped: its artifact is damaged, and its log says where", status=503, code="artifact_damaged")


def _plus(past: Stats, current: Stats) -> Stats:
    """The current figures, with totals that do not fall when a new worker begins at zero."""
    totals = {
        name: getattr(past, name) + getattr(current, name)
        for name in Stats.__struct_fields__
        if name.endswith("_total") and name != "blocks_total"
    }
    return msgspec.structs.replace(current, **totals)


def _as_error(failed: Failed) -> EngineError:
    """The error the worker raised, of its own type, without running that type's constructor."""
    kind = getattr(errors, failed.error, WorkerError)
    if not (isinstance(kind, type) and issubclass(kind, EngineError)):
        kind = WorkerError
    error: EngineError = kind.__new__(kind)
    EngineError.__init__(error, failed.message, hint=failed.hint)
    error.exit_code = failed.exit_code
    if isinstance(error, errors.MismatchError):
        error.misfits = ()
    return error
