"""Runs a request's sequences and answers, as a stream or whole, in one API's words."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Protocol

import msgspec
from starlette.responses import Response

from ...errors import EngineError
from ..dialects.planning import Ask
from ..generation import Generation
from ..offload import offload
from ..service import Service
from ..text.assembler import Assembler, Delta
from .errors import json_response
from .sse import EventSink, EventStream

_SCORE_CHARACTERS = 20
"""To write the score of a prompt's token with its alternatives takes as long as to tokenize so many."""
_ROUTE_CHARACTERS = 0.1
"""The same of one byte of the experts that tokens chose."""


class Dialect(Protocol):
    """Writes the answer to one request in one API: `whole`, or as events: `begin`, a `delta` for each that comes, and `end` or `error`.

    headers: of the response. Each sequence has an assembler, and an index among them.
    """

    headers: dict[str, str]

    def begin(self, assemblers: Sequence[Assembler]) -> bytes:
        """The events before those of the first delta, when that is there."""

    def delta(self, index: int, delta: Delta) -> bytes:
        """The events that a delta is; none for a delta that says nothing."""

    def end(self) -> bytes:
        """The events after those of the last delta."""

    def error(self, error: EngineError) -> bytes:
        """The events that break a stream off."""

    def whole(self, assemblers: Sequence[Assembler], deltas: Sequence[Sequence[Delta]]) -> msgspec.Struct:
        """The answer. deltas: of each sequence, in order."""


async def answer(service: Service, ask: Ask, dialect: Dialect, *, stream: bool) -> Response:
    """Raises RequestError."""
    if stream:
        start = partial(_stream, service, ask, dialect)
        return EventStream(start, dialect.headers, failed=dialect.error, silence=service.stream_silence)
    return json_response(await whole(service, ask, dialect), headers=dialect.headers)


async def whole(service: Service, ask: Ask, dialect: Dialect) -> msgspec.Struct:
    """Waits for all of the answer. Raises RequestError."""
    assemblers = await service.prepare(ask)
    collected: list[list[Delta]] = [[] for _ in assemblers]
    take = lambda index, delta: collected[index].append(delta)  # noqa: E731
    with closing(Generation(service.fleet, assemblers, service.metrics, take)) as generation:
        await generation.ended()
    scores = sum(len(delta.scores) for deltas in collected for delta in deltas)
    routes = sum(len(route) for deltas in collected for delta in deltas for route in delta.routes)
    return await offload(int(scores * _SCORE_CHARACTERS + routes * _ROUTE_CHARACTERS), partial(dialect.whole, assemblers, collected))


async def _stream(service: Service, ask: Ask, dialect: Dialect, sink: EventSink) -> "Stream":
    return Stream(service, await service.prepare(ask), dialect, sink)


class Stream:
    """Writes deltas to the sink as they come. What it does not take yet waits, and is joined unless it is told token by token."""

    def __init__(self, service: Service, assemblers: list[Assembler], dialect: Dialect, sink: EventSink) -> None:
        self._dialect = dialect
        self._assemblers = assemblers
        self._sink = sink
        self._opening = b""
        self._held: dict[int, list[Delta]] = {}
        sink.on_ready = self._release
        self._generation = Generation(service.fleet, assemblers, service.metrics, self._take)

    async def begun(self) -> None:
        await self._generation.begun()
        self._opening = self._dialect.begin(self._assemblers)

    async def ended(self) -> bytes:
        try:
            await self._generation.ended()
        finally:
            await self._sink.until_ready()
        return self._events_held() + self._dialect.end()

    def close(self) -> None:
        self._generation.close()

    def _take(self, index: int, delta: Delta) -> None:
        # the last one is held as well, to go with the end of the body in one packet
        is_last = delta.finish_reason is not None and self._generation.is_over
        if self._sink.ready and not is_last:
            self._sink.write(self._dialect.delta(index, delta))
        else:
            self._held.setdefault(index, []).append(delta)

    def _release(self) -> None:
        self._sink.write(self._events_held())

    def _events_held(self) -> bytes:
        held, self._held = self._held, {}
        opening, self._opening = self._opening, b""
        return opening + b"".join(self._dialect.delta(index, delta) for index in held for delta in self._joined(index, held[index]))

    def _joined(self, index: int, deltas: list[Delta]) -> list[Delta]:
        """As one, unless they list tokens: which of them belong to which piece could not be told any more."""
        return deltas if self._assemblers[index].plan.lists_tokens else [Delta.joined(deltas)]
