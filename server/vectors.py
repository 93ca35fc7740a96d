"""The texts of one request, from the worker's outputs to vectors."""

import asyncio
import time
import uuid
from collections.abc import Sequence

from ..errors import EngineError, RequestError, split_hint
from ..protocol import Embed, Output, SamplingParams
from .generation import Observer
from .text.assembler import Plan
from .text.whole_texts import Tokens
from .workers.dispatch import Requests

_CHOOSES_NOTHING = SamplingParams(max_tokens=0)


def embeds(texts: Sequence[Tokens], *, dimensions: int = 0, raw: bool = False) -> list[Embed]:
    """What the worker is asked for texts; see `Embed`."""
    id = uuid.uuid4().hex
    return [Embed(f"{id}-{n}", list(text.ids), dimensions, text.pair_start, raw) for n, text in enumerate(texts)]


class Vectors:
    """Sends texts to the worker, `window` at a time so that a long list takes no more of the queue than others do, and collects.

    `close` it to abort what has not finished. Raises RequestError if the server is overloaded.
    """

    def __init__(self, worker: Requests, requests: Sequence[Embed], observer: Observer, *, window: int) -> None:
        self._worker = worker
        self._observer = observer
        self._arrived = time.monotonic()
        self._requests = requests
        self._index = {request.id: n for n, request in enumerate(requests)}
        self._found: list[bytes] = [b""] * len(requests)
        self._left = len(requests)
        self._next = min(window, len(requests))
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        worker.generate(self._requests[: self._next], self)

    async def all(self) -> list[bytes]:
        """Wait for the vectors, in the order of the texts: float32, little-endian. Raises RequestError if one cannot be had."""
        await self._ended
        return self._found

    def put(self, output: Output) -> None:
        """The worker has computed this."""
        index = self._index.get(output.id)
        if index is None or self._ended.done():
            return
        if output.finish_reason == "abort":
            message, hint = split_hint(output.error or "the request was aborted\nhint: send it again")
            self.fail(RequestError(message, status=400 if output.error else 503, code="aborted", hint=hint))
            return
        self._found[index] = output.vector
        self._left -= 1
        request = self._requests[index]
        plan = Plan(id=request.id, prompt=request.prompt, sampling=_CHOOSES_NOTHING, arrived=self._arrived)
        self._observer.finished(plan, 0, "stop")
        if self._next < len(self._requests):
            self._send_next()
        elif self._left == 0:
            self._ended.set_result(None)

    def fail(self, error: EngineError) -> None:
        """There will be no more outputs."""
        if not self._ended.done():
            self._ended.set_exception(error)
        self._abandon()

    def close(self) -> None:
        """Nobody wants the rest. Safe to call twice."""
        self._ended.cancel()
        if not self._ended.cancelled():
            self._ended.exception()  # it has been told, or nobody listens any more
        self._abandon()

    def _send_next(self) -> None:
        self._next += 1
        try:
            self._worker.generate(self._requests[self._next - 1 : self._next], self)
        except RequestError as error:
            self.fail(error)

    def _abandon(self) -> None:
        for request in self._requests[: self._next]:
            self._worker.abandon(request.id)
