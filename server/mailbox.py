"""Where the outputs of one request wait for the task that sends them to the client."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from ..errors import EngineError
from ..protocol import Output


class Mailbox:
    """Outputs of a request's sequences, as an async iterator that ends with the last sequence.

    The worker's messages never wait for a reader: what a slow one has not taken yet is merged
    into fewer, larger outputs. Iteration raises the error the request was failed with.
    `abandon` is told of every sequence that nobody wants any more.
    """

    def __init__(self, ids: Iterable[str], abandon: Callable[[str], None]) -> None:
        self._open = set(ids)
        self._abandon = abandon
        self._pending: deque[Output] = deque()
        self._error: EngineError | None = None
        self._news = asyncio.Event()

    def put(self, output: Output) -> None:
        if output.id not in self._open:
            return
        if output.finish_reason is not None:
            self._open.remove(output.id)
        if self._pending and self._pending[-1].id == output.id:
            output = _merged(self._pending.pop(), output)
        self._pending.append(output)
        self._news.set()

    def fail(self, error: EngineError) -> None:
        self._error = error
        self._open.clear()
        self._news.set()

    def abandon(self, id: str) -> None:
        """No more outputs of this sequence; the worker forgets it at once."""
        if id in self._open:
            self._open.remove(id)
            self._abandon(id)
            self._pending = deque(output for output in self._pending if output.id != id)
            self._news.set()

    def close(self) -> None:
        for id in list(self._open):
            self.abandon(id)

    def __aiter__(self) -> "Mailbox":
        return self

    async def __anext__(self) -> Output:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._pending.popleft()


def _merged(first: Output, second: Output) -> Output:
    return Output(
        id=first.id,
        tokens=first.tokens + second.tokens,
        logprobs=first.logprobs + second.logprobs,
        finish_reason=second.finish_reason,
        error=second.error,
        cached_tokens=first.cached_tokens,
    )
