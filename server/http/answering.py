"""Runs a request's sequences and answers, as a stream or whole. Chat and completions differ only in their `Style`."""

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from ..dialects.planning import Ask
from ..dialects.responses import Answer, CompletionTokensDetails, PromptTokensDetails, Usage
from ..dialects.schemas import GenerateRequest
from ..generation import Generation
from ..service import Service
from ..text.assembler import Assembler, Delta
from .connection import Connection
from .disconnect import unless_disconnected
from .errors import json_response
from .sse import DONE, EventSink, EventStream, EventTemplate, event


class Style(Protocol):
    """How choices are written in one API. `prefix` begins ids; the `*_object` names go in `object`."""

    prefix: str
    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> Any | None:
        """The choice of a chunk that comes before the text of choice `index`, if there is one."""

    def chunk(self, index: int, delta: Delta) -> Any:
        """The choice of a chunk, for a delta with no more than one piece."""

    def whole(self, index: int, delta: Delta) -> Any:
        """The choice of a whole answer, all its deltas in one."""


async def answer(http: Request, service: Service, request: GenerateRequest, ask: Ask, style: Style) -> Response:
    """Raises RequestError, and ClientDisconnectedError when there is nobody to answer."""
    writer = _Writer(service, ask, style, with_usage=request.include_usage())
    headers = {"x-request-id": writer.id}
    if request.stream:
        return EventStream(writer.stream, headers)
    with unless_disconnected(Connection.of(http.scope)):
        return json_response(await writer.whole(), headers=headers)


class _Writer:
    """Writes what all answers to one request share."""

    def __init__(self, service: Service, ask: Ask, style: Style, *, with_usage: bool) -> None:
        self._service = service
        self._ask = ask
        self._style = style
        self._with_usage = with_usage
        self._created = int(time.time())
        self.id = f"{style.prefix}-{ask.id}"

    async def stream(self, sink: EventSink) -> "_Stream":
        return _Stream(self, self._service, await self._service.prepare(self._ask), sink)

    async def whole(self) -> Answer:
        assemblers = await self._service.prepare(self._ask)
        collected: list[list[Delta]] = [[] for _ in assemblers]
        take = lambda index, delta: collected[index].append(delta)  # noqa: E731
        with closing(Generation(self._service.worker.dispatch, assemblers, self._service.metrics, take)) as generation:
            await generation.ended()
        choices = [self._style.whole(index, Delta.joined(deltas)) for index, deltas in enumerate(collected)]
        result = self._answer(self._style.whole_object, choices)
        result.usage = self._usage(assemblers)
        return result

    def opening(self, index: int) -> bytes:
        """The event that comes before the text of a choice."""
        choice = self._style.opening(index)
        return b"" if choice is None else event(self._chunk([choice]))

    def event(self, index: int, delta: Delta) -> bytes:
        """The events that a delta is; none for a delta that says nothing."""
        says_something = delta.all_pieces() or delta.finish_reason or (self._ask.logprobs is not None and delta.tokens)
        if not says_something:
            return b""
        return b"".join(event(self._chunk([self._style.chunk(index, part)])) for part in delta.parts())

    def template(self, index: int) -> EventTemplate | None:
        """`event` for deltas that are nothing but text, None if there is more to them."""
        if self._ask.logprobs is not None:
            return None
        return EventTemplate(lambda text: self._chunk([self._style.chunk(index, Delta(text, []))]))

    def closing(self, assemblers: Sequence[Assembler]) -> bytes:
        """The events that end a stream."""
        if not self._with_usage:
            return DONE
        last = self._answer(self._style.chunk_object, [])
        last.usage = self._usage(assemblers)
        return event(last) + DONE

    def _chunk(self, choices: list[Any]) -> Answer:
        chunk = self._answer(self._style.chunk_object, choices)
        if self._with_usage:
            chunk.usage = None
        return chunk

    def _answer(self, kind: str, choices: list[Any]) -> Answer:
        return Answer(id=self.id, object=kind, created=self._created, model=self._service.model, choices=choices)

    def _usage(self, assemblers: Sequence[Assembler]) -> Usage:
        """A prompt counts once, however many choices are made from it."""
        firsts = assemblers[:: self._ask.choices]
        prompt = sum(len(assembler.plan.prompt) for assembler in firsts)
        generated = sum(assembler.generated for assembler in assemblers)
        cached = sum(assembler.cached_tokens for assembler in firsts)
        reasoning = sum(assembler.reasoning_tokens for assembler in assemblers)
        return Usage(prompt, generated, prompt + generated, PromptTokensDetails(cached), CompletionTokensDetails(reasoning))


class _Stream:
    """Writes deltas to the sink as they come. What it does not take yet waits, and goes as one event per choice."""

    def __init__(self, writer: _Writer, service: Service, assemblers: list[Assembler], sink: EventSink) -> None:
        self._writer = writer
        self._assemblers = assemblers
        self._sink = sink
        self._templates: dict[int, EventTemplate | None] = {}
        self._held: dict[int, list[Delta]] = {}
        sink.on_ready = self._release
        self._generation = Generation(service.worker.dispatch, assemblers, service.metrics, self._take)

    async def begun(self) -> None:
        await self._generation.begun()

    async def ended(self) -> bytes:
        try:
            await self._generation.ended()
        finally:
            await self._sink.until_ready()
        return self._events_held() + self._writer.closing(self._assemblers)

    def close(self) -> None:
        self._generation.close()

    def _take(self, index: int, delta: Delta) -> None:
        # the last one is held as well, to go with the end of the body in one packet
        is_last = delta.finish_reason is not None and self._generation.is_over
        if self._sink.ready and not is_last:
            self._sink.write(self._events(index, delta))
        else:
            self._held.setdefault(index, []).append(delta)

    def _release(self) -> None:
        self._sink.write(self._events_held())

    def _events_held(self) -> bytes:
        held, self._held = self._held, {}
        return b"".join(self._events(index, Delta.joined(deltas)) for index, deltas in held.items())

    def _events(self, index: int, delta: Delta) -> bytes:
        if index not in self._templates:
            self._templates[index] = self._writer.template(index)
            return self._writer.opening(index) + self._events(index, delta)
        template = self._templates[index]
        text = delta.text if delta.pieces is None else delta.only_content()
        if template is None or not text or delta.finish_reason is not None:
            return self._writer.event(index, delta)
        return template.fill(text)
