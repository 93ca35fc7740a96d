"""Runs a request's sequences and answers, as a stream or whole. Chat and completions differ only in their `Style`."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from .disconnect import unless_disconnected
from .generation import Assembler, Delta, generate
from .http_errors import json_response
from .planning import Ask
from .responses import Answer, PromptTokensDetails, Usage
from .schemas import GenerateRequest
from .service import Service
from .sse import DONE, EventStream, event


class Style(Protocol):
    """How choices are written in one API. `prefix` begins ids; the `*_object` names go in `object`."""

    prefix: str
    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> Any | None:
        """The choice of a chunk that comes before the text of choice `index`, if there is one."""

    def chunk(self, index: int, delta: Delta) -> Any:
        """The choice of a chunk."""

    def whole(self, index: int, delta: Delta) -> Any:
        """The choice of a whole answer, all its deltas in one."""


async def answer(http: Request, service: Service, request: GenerateRequest, ask: Ask, style: Style) -> Response:
    """Raises RequestError, and ClientDisconnectedError when there is nobody to answer."""
    writer = _Writer(service, request, ask, style)
    if request.stream:
        return EventStream(writer.events(), {"x-request-id": writer.id})
    whole = await unless_disconnected(http.receive, writer.whole())
    return json_response(whole, headers={"x-request-id": writer.id})


class _Writer:
    def __init__(self, service: Service, request: GenerateRequest, ask: Ask, style: Style) -> None:
        self._service = service
        self._request = request
        self._ask = ask
        self._style = style
        self.id = f"{style.prefix}-{ask.id}"
        self._created = int(time.time())

    async def events(self) -> AsyncGenerator[bytes]:
        style, with_usage = self._style, self._request.include_usage()
        assemblers = await self._service.prepare(self._ask)
        opened: set[int] = set()
        async with aclosing(generate(self._service.worker, assemblers, self._service.metrics)) as deltas:
            async for index, delta in deltas:
                choices = []
                if index not in opened:
                    opened.add(index)
                    choices.append(style.opening(index))
                if delta.text or delta.finish_reason or (self._ask.logprobs is not None and delta.tokens):
                    choices.append(style.chunk(index, delta))
                chunks = [self._answer(style.chunk_object, [choice]) for choice in choices if choice is not None]
                for chunk in chunks if with_usage else ():
                    chunk.usage = None
                if chunks:
                    yield b"".join(map(event, chunks))
        if with_usage:
            last = self._answer(style.chunk_object, [])
            last.usage = self._usage(assemblers)
            yield event(last)
        yield DONE

    async def whole(self) -> Answer:
        assemblers = await self._service.prepare(self._ask)
        collected: list[list[Delta]] = [[] for _ in assemblers]
        async with aclosing(generate(self._service.worker, assemblers, self._service.metrics)) as deltas:
            async for index, delta in deltas:
                collected[index].append(delta)
        choices = [self._style.whole(index, Delta.joined(deltas)) for index, deltas in enumerate(collected)]
        result = self._answer(self._style.whole_object, choices)
        result.usage = self._usage(assemblers)
        return result

    def _answer(self, kind: str, choices: list[Any]) -> Answer:
        return Answer(id=self.id, object=kind, created=self._created, model=self._service.model, choices=choices)

    def _usage(self, assemblers: Sequence[Assembler]) -> Usage:
        """A prompt counts once, however many choices are made from it."""
        firsts = assemblers[:: self._ask.choices]
        prompt = sum(len(assembler.plan.prompt) for assembler in firsts)
        generated = sum(assembler.generated for assembler in assemblers)
        cached = sum(assembler.cached_tokens for assembler in firsts)
        return Usage(prompt, generated, prompt + generated, PromptTokensDetails(cached))
