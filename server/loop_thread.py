"""An event loop in a thread of its own, for synchronous callers."""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopThread:
    """Runs coroutines for a caller that may itself be inside an event loop (a notebook is)."""

    def __init__(self) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="engine-llm", daemon=True)
        self._thread.start()
        self._loop, self._closing = started.result()

    @staticmethod
    def _run(started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]") -> None:
        async def until_closed() -> None:
            closing = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), closing))
            await closing.wait()

        asyncio.run(until_closed())

    def start(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.start(work).result()

    def iterate(self, work: Callable[[Callable[[_T], None]], Coroutine[Any, Any, None]]) -> Iterator[_T]:
        """What `work` hands to the function it is given, until it ends. It is cancelled when the caller stops iterating."""
        arrived: queue.SimpleQueue[tuple[_T] | None] = queue.SimpleQueue()
        working = self.start(work(lambda item: arrived.put((item,))))
        working.add_done_callback(lambda _: arrived.put(None))
        try:
            while (item := arrived.get()) is not None:
                yield item[0]
            working.result()
        finally:
            working.cancel()

    def close(self) -> None:
        """Cancels what still runs. Safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
