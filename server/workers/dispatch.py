"""The sequences that a worker computes: who is admitted, what is sent again after a worker's death, who gets the outputs."""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ...errors import EngineError, RequestError
from ...protocol import Abort, Output, Ready, Submit
from .life import WorkerLife


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


class Dispatch:
    """Requests of one server, over the lives of its workers. max_queue: how many sequences may wait beyond those running.

    After a death the sequences in flight are in quarantine: the next worker gets one after the other, each
    once the one before it has given a token or ended. So it is clear which one another death belongs to.
    """

    def __init__(self, life: WorkerLife, *, max_queue: int | None) -> None:
        self._life = life
        self._max_queue = max_queue
        self._live: dict[str, _Live] = {}
        self._quarantine: deque[str] = deque()
        self._held = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def sequences(self) -> int:
        """Sequences running or waiting."""
        return len(self._live)

    @property
    def live(self) -> int:
        """The same, and requests that wait for a worker."""
        return len(self._live) + self._held

    def generate(self, submits: Sequence[Submit], receiver: Receiver) -> None:
        """Start these sequences, all or none. `receiver` gets their outputs until the last or until they are abandoned.

        Raises RequestError if the queue is full or the server is going down.
        """
        self._life.check_open()
        self._check_size(len(submits))
        self._check_room(len(submits))
        for submit in submits:
            self._live[submit.id] = _Live(submit, receiver)
            if self._quarantine:
                self._quarantine.append(submit.id)
            else:
                self._life.send(submit)
        self._idle.clear()

    def abandon(self, id: str) -> None:
        """No more outputs of this sequence; the worker forgets it at once. Unknown ids are ignored."""
        if self._forget(id):
            self._life.send(Abort(id))

    async def hold(self, timeout: float) -> Ready:
        """A request waits until it can start, `timeout` seconds at most.

        Raises RequestError (503) after that, and at once if too many requests wait already.
        """
        if not self._life.serving:
            self._check_room(self._held + 1)
        self._held += 1
        try:
            async with asyncio.timeout(timeout):
                return await self._life.until_ready()
        except TimeoutError:
            raise RequestError(
                f"the model is still loading ({self._life.last_phase() or 'starting'})",
                status=503,
                code="loading",
                hint="try again in a few seconds; GET /health answers 200 when it is ready",
            ) from None
        finally:
            self._held -= 1

    def put(self, output: Output) -> None:
        """The worker has computed this."""
        live = self._live.get(output.id)
        if live is None:
            return
        live.received += output.tokens
        if self._quarantine:
            self._clear(output.id)
        if output.finish_reason is not None:
            self._forget(output.id)
        live.receiver.put(output)

    def send_all(self) -> None:
        """To the first worker: what came while it was loading."""
        for live in self._live.values():
            self._life.send(live.submit)

    def send_again(self) -> None:
        """To a worker that took the place of one that died: everything, through the quarantine."""
        self._quarantine.extend(self._live)
        self._try_next()

    def drop_suspect(self) -> None:
        """A request that takes every worker down with it must not take the server down as well."""
        if self._quarantine:
            suspect = self._quarantine[0]
            error = RequestError(
                "the worker died twice while it had this request", status=500, code="worker_died", hint="the server's log says how"
            )
            self._live[suspect].receiver.fail(error)
            self._forget(suspect)
        self._quarantine.clear()

    def fail_all(self, error: EngineError) -> None:
        """No sequence in flight gets any more outputs."""
        for id, live in list(self._live.items()):
            live.receiver.fail(error)
            self.abandon(id)

    async def until_idle(self) -> None:
        """Wait for the last sequence in flight to end."""
        await self._idle.wait()

    def _capacity(self) -> float:
        running = self._life.ready.max_num_seqs if self._life.ready else 0
        return math.inf if self._max_queue is None else running + self._max_queue

    def _check_size(self, wanted: int) -> None:
        if wanted > (capacity := self._capacity()):
            raise RequestError(
                f"{wanted} sequences in one request, but this server takes {capacity} at once",
                code="too_many_sequences",
                hint="ask for fewer at a time",
            )

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
        self._clear(id)
        if not self._live:
            self._idle.set()
        return known

    def _clear(self, id: str) -> None:
        """This sequence kills no worker."""
        if id in self._quarantine:
            first = self._quarantine[0] == id
            self._quarantine.remove(id)
            if first:
                self._try_next()

    def _try_next(self) -> None:
        if self._quarantine:
            self._life.send(self._live[self._quarantine[0]].resumed())
