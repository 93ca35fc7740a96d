"""The sequences of one request, from the worker's outputs to deltas, without a task in between."""

import asyncio
from collections.abc import Callable, Sequence

from ..errors import EngineError
from ..protocol import Output
from .text.assembler import Assembler, Delta, Plan
from .workers.dispatch import Requests


class Observer:
    """Is told how generation proceeds. This one does not care; see metrics for one that does."""

    def produced(self, plan: Plan, new: int) -> None:
        """`new` tokens came, at least one."""

    def finished(self, plan: Plan, generated: int, reason: str) -> None:
        """The sequence ended; `reason` is "stop", "length" or "abort"."""


class Generation:
    """Runs these sequences together and hands (index of the assembler, delta) to `take` as steps complete.

    `close` it to abort what has not finished. Raises RequestError if the server is overloaded.
    """

    def __init__(self, worker: Requests, assemblers: Sequence[Assembler], observer: Observer, take: Callable[[int, Delta], None]) -> None:
        self._worker = worker
        self._observer = observer
        self._take = take
        self._open = {assembler.plan.id: (index, assembler) for index, assembler in enumerate(assemblers)}
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        worker.generate([assembler.submit() for assembler in assemblers], self)

    async def begun(self) -> None:
        """Wait for the first delta. Raises what `ended` raises if there will be none."""
        await self._begun

    async def ended(self) -> None:
        """Wait for the last delta. Raises RequestError if a sequence cannot be served or the server goes down."""
        await self._ended

    @property
    def is_over(self) -> bool:
        """Whether no delta follows the one being taken."""
        return not self._open

    def put(self, output: Output) -> None:
        """The worker has computed this. Nothing is raised: who made the request is told, not the worker's connection."""
        if output.id not in self._open:
            return
        index, assembler = self._open[output.id]
        try:
            if output.prompt_logprobs:
                assembler.score(output.prompt_logprobs)
                self._begin()
                return
            before = assembler.generated
            delta = assembler.push(output)
            if assembler.generated > before:
                self._observer.produced(assembler.plan, assembler.generated - before)
            if delta.finish_reason is not None:
                self._finish(assembler)
            self._take(index, delta)
        except Exception as error:
            self._end(error)
            return
        self._begin()
        if not self._open and not self._ended.done():  # cancelled, if who waited for it was
            self._ended.set_result(None)

    def fail(self, error: EngineError) -> None:
        """There will be no more outputs."""
        self._end(error)

    def close(self) -> None:
        """Nobody wants the rest. Safe to call twice."""
        for future in (self._begun, self._ended):
            future.cancel()
            if not future.cancelled():
                future.exception()  # it has been told, or nobody listens any more: asyncio need not log it
        self._abandon()

    def _begin(self) -> None:
        if not self._begun.done():
            self._begun.set_result(None)

    def _finish(self, assembler: Assembler) -> None:
        del self._open[assembler.plan.id]
        self._worker.abandon(assembler.plan.id)
        self._observer.finished(assembler.plan, assembler.generated, assembler.finish_reason or "stop")

    def _end(self, error: Exception) -> None:
        for future in (self._begun, self._ended):
            if not future.done():
                future.set_exception(error)
        self._abandon()

    def _abandon(self) -> None:
        for id, (_, assembler) in self._open.items():
            self._worker.abandon(id)
            self._observer.finished(assembler.plan, assembler.generated, "abort")
        self._open.clear()
