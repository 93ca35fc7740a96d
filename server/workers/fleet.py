"""All workers of a server behind one interface: who is admitted, which worker computes a request, what all of them did."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal

import msgspec

from ...errors import EngineError, RequestError
from ...protocol import Ready, Request, Stats
from .client import WorkerClient
from .dispatch import SEQUENCE_LOAD, Receiver
from .route import Route

RECENT = 64
"""Sequences that ended last, which say how fast places become free."""
LONGEST_RETRY = 60.0
Weights = Literal["unchecked", "whole", "damaged"]


class Fleet:
    """Replicas: workers of one artifact, each with a KV cache and requests of its own. `run()` must be running for anything to happen.

    A request goes where it is probably done first (`Route`) and stays there, over the death of its worker. Which one computes it changes
    no bit of its answer. max_queue: sequences that may wait beyond those running, in all replicas together (None: any number).
    weights: whether they are known to be those that were built.
    """

    def __init__(
        self, replicas: Sequence[WorkerClient], *, max_queue: int | None = None, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self.replicas = tuple(replicas)
        self.weights: Weights = "unchecked"
        self._max_queue = max_queue
        self._log = log
        self._route = Route(len(self.replicas))
        self._restarts = [0] * len(self.replicas)
        self._placed: dict[str, int] = {}
        self._ended: deque[float] = deque(maxlen=RECENT)
        self._held = 0

    async def run(self) -> None:
        """Serve until `drain` or `stop`. A replica whose workers cannot be kept running is left out.

        Raises EngineError when none is left.
        """
        failed: list[int] = []

        async def keep(number: int, replica: WorkerClient) -> None:
            try:
                await replica.run()
            except EngineError as error:
                failed.append(number)
                if len(failed) == len(self.replicas):
                    raise
                self._log(f"ERROR: replica {number} is given up, {len(self.replicas) - len(failed)} serve on: {error}")

        await self._all(keep(number, replica) for number, replica in enumerate(self.replicas))

    async def drain(self, timeout: float) -> None:
        """Take no more requests, let those in flight finish for up to `timeout` seconds, end the workers."""
        await self._all(replica.drain(timeout) for replica in self.replicas)

    def stop(self) -> None:
        """End at once: requests in flight fail, the workers are killed by `run`."""
        for replica in self.replicas:
            replica.stop()

    def fail(self) -> None:
        """The weights are damaged: requests in flight fail, the workers are ended by `run`, and no others are started."""
        self.weights = "damaged"
        for replica in self.replicas:
            replica.fail()

    @property
    def sequences(self) -> int:
        """Sequences running or waiting."""
        return sum(replica.dispatch.sequences for replica in self.replicas)

    @property
    def live(self) -> int:
        """The same, and requests that wait for a worker."""
        return self.sequences + self._held

    @property
    def stats(self) -> Stats:
        """Of all replicas together; step figures are those of the first."""
        first, *others = (replica.totals.stats for replica in self.replicas)
        added = (name for name in Stats.__struct_fields__ if name not in ("step_tokens", "step_seconds"))
        return msgspec.structs.replace(first, **{name: sum(getattr(stats, name) for stats in (first, *others)) for name in added})

    async def until_ready(self) -> Ready:
        """What every replica can take, and sequences and blocks of all together, as soon as one serves.

        Raises RequestError if the server goes down instead.
        """
        waiting = {asyncio.ensure_future(replica.life.until_ready()) for replica in self.replicas}
        try:
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if any(each.exception() is None for each in done):
                    return self._together()
                if not waiting:
                    return done.pop().result()
        finally:
            for each in waiting:
                each.cancel()

    async def hold(self, timeout: float) -> Ready:
        """A request waits until it can start, `timeout` seconds at most.

        Raises RequestError (503) after that, and at once if too many requests wait already.
        """
        if any(replica.life.serving for replica in self.replicas):
            return self._together()
        self._check_room(self._held + 1)
        self._held += 1
        try:
            async with asyncio.timeout(timeout):
                return await self.until_ready()
        except TimeoutError:
            phase = next((phase for replica in self.replicas if (phase := replica.life.last_phase())), "starting")
            raise RequestError(
                f"the model is still loading ({phase})",
                status=503,
                code="loading",
                hint="try again in a few seconds; GET /health answers 200 when it is ready",
            ) from None
        finally:
            self._held -= 1

    def check_size(self, wanted: int) -> None:
        """Raises RequestError for more sequences than can be taken at once."""
        if wanted > (capacity := self._capacity()):
            raise RequestError(
                f"{wanted} sequences in one request, but this server takes {capacity} at once",
                code="too_many_sequences",
                hint="ask for fewer at a time",
            )

    def generate(self, submits: Sequence[Request], receiver: Receiver) -> None:
        """See `Requests`."""
        self.check_size(len(submits))
        self._check_room(len(submits))
        candidates = self._open()
        self.replicas[candidates[0]].dispatch.check(submits)
        for number in candidates:
            if self._restarts[number] != (restarts := self.replicas[number].life.restarts):
                self._restarts[number] = restarts
                self._route.forget(number)
        loads = [replica.dispatch.load if number in candidates else math.inf for number, replica in enumerate(self.replicas)]
        for submit in submits:
            number, uncached = self._route.choose(submit.prompt, loads)
            loads[number] += SEQUENCE_LOAD + uncached
            self._placed[submit.id] = number
            self.replicas[number].dispatch.generate([submit], receiver, [uncached])

    def abandon(self, id: str) -> None:
        """No more outputs of this sequence; its worker forgets it at once. Unknown ids are ignored."""
        number = self._placed.pop(id, None)
        if number is not None:
            self._ended.append(time.monotonic())
            self.replicas[number].dispatch.abandon(id)

    def _open(self) -> list[int]:
        """Replicas that may be given something: those that serve; where none does, those that will. Else the first, which says why not."""
        for state in (lambda replica: replica.is_well, lambda replica: replica.life.serving, lambda replica: not replica.life.ended):
            if found := [number for number, replica in enumerate(self.replicas) if state(replica)]:
                return found
        return [0]

    def _readies(self) -> list[Ready]:
        return [replica.life.ready for replica in self.replicas if replica.life.ready is not None and not replica.life.ended]

    def _together(self) -> Ready:
        readies = self._readies()
        return Ready(
            num_blocks=sum(ready.num_blocks for ready in readies),
            max_tokens=min(ready.max_tokens for ready in readies),
            max_batch_tokens=min(ready.max_batch_tokens for ready in readies),
            max_num_seqs=sum(ready.max_num_seqs for ready in readies),
        )

    def _capacity(self) -> float:
        if self._max_queue is None:
            return math.inf
        return self._max_queue + sum(ready.max_num_seqs for ready in self._readies())

    def _check_room(self, wanted: int) -> None:
        if self.sequences + wanted > (capacity := self._capacity()):
            raise RequestError(
                f"{self.live} sequences are running or waiting, and no more than {capacity} may",
                status=503,
                code="overloaded",
                hint="try again after the time given in Retry-After",
                retry_after=self._seconds_until_free(self.sequences + wanted - capacity),
            )

    def _seconds_until_free(self, places: float) -> float | None:
        """How long it takes at the rate of the last sequences that ended until so many more have."""
        if len(self._ended) < 2:
            return None
        rate = len(self._ended) / max(time.monotonic() - self._ended[0], 1e-3)
        return min(max(places / rate, 1.0), LONGEST_RETRY)

    @staticmethod
    async def _all(tasks: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Until all are done, or one raises: then the others are cancelled."""
        running = [asyncio.ensure_future(task) for task in tasks]
        try:
            await asyncio.gather(*running)
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
