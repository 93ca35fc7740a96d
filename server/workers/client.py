"""Keeps a worker running and carries requests to it, over its death if need be."""

import asyncio
from collections.abc import Callable

from ...errors import EngineError, RequestError
from ...protocol import Drain, Failed, Phase, Ready, StepDone, ToServer
from ..options import WorkerOptions
from .dispatch import Dispatch
from .life import State, WorkerLife, damaged, shutting_down
from .process import WorkerHandle, describe_exit
from .recent_requests import RecentRequests
from .totals import Totals


class WorkerClient:
    """A worker's life, the requests that it computes, and what it and those before it have done. `run()` must be running for anything
    to happen. given_up: what no worker is to be given again.
    """

    def __init__(
        self,
        options: WorkerOptions,
        handle: WorkerHandle,
        *,
        given_up: RecentRequests | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._log = log
        self.life = WorkerLife(options, handle)
        self.dispatch = Dispatch(self.life, given_up)
        self.totals = Totals()

    @property
    def is_stalled(self) -> bool:
        """Whether the worker has requests, and has not gone on with them for a few times as long as a step takes."""
        ready, busy = self.life.ready, self.life.serving and self.dispatch.sequences > 0
        return busy and ready is not None and self.life.progress.is_stalled(max_batch_tokens=ready.max_batch_tokens)

    @property
    def is_well(self) -> bool:
        """Whether it serves requests, and goes on with them."""
        return self.life.state == "ready" and not self.is_stalled

    async def run(self) -> None:
        """Serve until `drain` or `stop`. Raises EngineError when no worker can be kept running."""
        try:
            while True:
                await self.life.serve(self._on_message)
                if self._is_over():
                    return
                code = await self.life.reap()
                if self._is_over():
                    return
                self._after_death(code)
                self.life.restart()
        except EngineError:
            failure = "the worker failed and could not be replaced"
            self._stop(RequestError(failure, status=503, code="worker_failed", hint="the server's log says why"))
            raise
        finally:
            self.life.kill()

    async def drain(self, timeout: float) -> None:
        """Take no more requests, let those in flight finish for up to `timeout` seconds, end the worker."""
        self.life.set_state("draining")
        try:
            async with asyncio.timeout(timeout):
                await self.dispatch.until_idle()
        except TimeoutError:
            self._log(f"{self.dispatch.sequences} requests not finished after {timeout:g} s")
        self.dispatch.fail_all(shutting_down())
        self.life.send(Drain())
        await self.life.until_lost()
        self.stop()

    def fail(self) -> None:
        """The weights are damaged: requests in flight fail, the worker is ended by `run`, and no other is started."""
        self._stop(damaged(), "damaged")

    def stop(self) -> None:
        """End at once: requests in flight fail, the worker is killed by `run`."""
        self._stop(shutting_down())

    def _stop(self, error: RequestError, state: State = "stopped") -> None:
        self.life.set_state(state)
        self.dispatch.fail_all(error)
        self.life.close()

    def _is_over(self) -> bool:
        return self.life.ended or (self.life.state == "draining" and not self.dispatch.sequences)

    def _after_death(self, code: int | None) -> None:
        """Raises EngineError if another worker would not help."""
        self.life.check_death(code, explained=self.dispatch.worker_died())
        self._log(f"the worker {describe_exit(code)}; starting another, {self.dispatch.sequences} sequences will go on")
        self.totals.worker_died()

    def _on_message(self, message: ToServer) -> None:
        match message:
            case StepDone(outputs=outputs, stats=stats):
                self.totals.take(stats)
                self.life.progress.step(stats)
                for output in outputs:
                    self.dispatch.put(output)
            case Phase(name=name, seconds=seconds):
                self.life.phases[name] = seconds
                self._log(f"{name} {seconds:.2f} s")
            case Ready():
                self._on_ready(message)
            case Failed():
                self.life.failed = message

    def _on_ready(self, ready: Ready) -> None:
        self.life.became_ready(ready)
        self.dispatch.send_all()
        self.life.set_state("draining" if self.life.state == "draining" else "ready")
