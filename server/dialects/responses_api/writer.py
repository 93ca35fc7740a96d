"""Writes answers as OpenAI's Responses API does."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from ....errors import EngineError, RequestError
from ...http.sse import EventTemplate, named_event
from ...parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from ...text.assembler import Assembler, Delta, Finish, Token
from ..answers import ContentLogprob
from ..logprobs import LogprobWriter
from ..planning import Ask
from .answers import (
    IncompleteDetails,
    InputTokensDetails,
    OutputItem,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    Status,
)
from .events import Completed, Created, Failed, Incomplete, InProgress, ResponseEvent
from .open_items import OpenCall, OpenItem, OpenMessage, OpenReasoning
from .schema import ResponsesRequest

_UNNUMBERED = b'"sequence_number":0'
"""Stands in no text of a JSON message, where quotes are escaped."""


class ResponseWriter:
    """A Dialect. logprobs: how those of tokens are written, None for none. on_end: is given the response once it is whole."""

    def __init__(
        self, model: str, ask: Ask, request: ResponsesRequest, logprobs: LogprobWriter | None, on_end: Callable[[ResponseObject], object]
    ) -> None:
        self._ask = ask
        self._response = _new_response(f"resp_{ask.id}", model, request)
        self._logprobs = logprobs
        self._on_end = on_end
        self._assembler: Assembler
        self._finish: Finish | None = None
        self._items: list[OutputItem] = []
        self._open: OpenItem | None = None
        self._text_event: _NumberedTemplate | None = None
        self._tokens: list[Token] = []
        self._number = 0
        self.headers = {"x-request-id": self._response.id}

    def begin(self, assemblers: Sequence[Assembler]) -> bytes:
        (self._assembler,) = assemblers
        return self._written((Created(response=self._response), InProgress(response=self._response)))

    def delta(self, index: int, delta: Delta) -> bytes:
        if self._text_event is not None and self._open is not None and (text := delta.only_content()):
            self._open.texts.append(text)
            self._number += 1
            return self._text_event.fill_numbered(self._number - 1, text)
        return self._written(self._said(delta))

    def end(self) -> bytes:
        events = self._written(self._ended())
        last = Incomplete if self._response.status == "incomplete" else Completed
        return events + self._written((last(response=self._response),))

    def error(self, error: EngineError) -> bytes:
        opening = b"" if self._number else self._written((Created(response=self._response), InProgress(response=self._response)))
        code = error.code if isinstance(error, RequestError) else None
        self._response.status, self._response.output = "failed", self._items
        self._response.error = ResponseError(code or "server_error", str(error))
        return opening + self._written((Failed(response=self._response),))

    def whole(self, assemblers: Sequence[Assembler], deltas: Sequence[Sequence[Delta]]) -> ResponseObject:
        (self._assembler,) = assemblers
        for delta in deltas[0] if self._logprobs else (Delta.joined(deltas[0]),):
            for _ in self._said(delta):
                pass
        for _ in self._ended():
            pass
        return self._response

    def _written(self, events: Iterable[ResponseEvent]) -> bytes:
        return b"".join(map(self._numbered, events))

    def _numbered(self, event: ResponseEvent) -> bytes:
        event.sequence_number = self._number
        self._number += 1
        return named_event(event)

    def _said(self, delta: Delta) -> Iterator[ResponseEvent]:
        self._finish = delta.finish_reason
        self._tokens += delta.tokens
        pieces = delta.all_pieces()
        for piece in pieces:
            yield from self._piece(piece)
        if pieces:
            self._tokens = []  # of what has no logprobs

    def _piece(self, piece: Piece) -> Iterator[ResponseEvent]:
        """An addition to the open item, or to one that begins when that ends."""
        match piece, self._open:
            case Content(text), OpenMessage() as message:
                yield message.add(text, self._logprobs_of_tokens())
            case (Reasoning(text), OpenReasoning() as item) | (CallArguments(_, text), OpenCall() as item):
                yield item.add(text)
            case CallStart(_, id, name), _:
                yield from self._start("fc", lambda index, item: OpenCall(index, item, id, name))
            case Content(), _:
                yield from self._start("msg", OpenMessage)
                yield from self._piece(piece)
            case Reasoning(), _:
                yield from self._start("rs", OpenReasoning)
                yield from self._piece(piece)

    def _start(self, prefix: str, make: Callable[[int, str], OpenItem]) -> Iterator[ResponseEvent]:
        yield from self._close("completed")
        index = len(self._items)
        self._open = item = make(index, f"{prefix}_{self._ask.id}_{index}")
        if isinstance(item, OpenMessage) and self._logprobs is None:
            self._text_event = _NumberedTemplate(lambda text: named_event(item.delta(text)))
        yield from item.begin()

    def _close(self, status: Status) -> Iterator[ResponseEvent]:
        if self._open is not None:
            yield from self._open.end(status)
            self._items.append(self._open.item)
        self._open = self._text_event = None

    def _ended(self) -> Iterator[ResponseEvent]:
        """The end of the last item, and of the response. An answer that says nothing is an empty message."""
        status: Status = "incomplete" if self._finish == "length" else "completed"
        if self._open is None and not self._items:
            yield from self._start("msg", OpenMessage)
        if isinstance(self._open, OpenMessage):
            self._open.logprobs += self._logprobs_of_tokens()
        yield from self._close(status)
        response = self._response
        response.status, response.output, response.usage = status, self._items, self._usage()
        response.completed_at = int(time.time()) if status == "completed" else None
        response.incomplete_details = IncompleteDetails() if status == "incomplete" else None
        self._on_end(response)

    def _logprobs_of_tokens(self) -> list[ContentLogprob]:
        tokens, self._tokens = self._tokens, []
        return self._logprobs.chat(tokens).content if self._logprobs else []

    def _usage(self) -> ResponseUsage:
        prompt, generated = len(self._assembler.plan.prompt), self._assembler.generated
        read, thought = InputTokensDetails(self._assembler.cached_tokens), OutputTokensDetails(self._assembler.reasoning_tokens)
        return ResponseUsage(prompt, generated, prompt + generated, read, thought)


class _NumberedTemplate(EventTemplate):
    """Events that differ in one text and in their number."""

    def __init__(self, make: Callable[[str], bytes]) -> None:
        super().__init__(make)
        self._head, self._before = self._before.split(_UNNUMBERED)

    def fill_numbered(self, number: int, text: str) -> bytes:
        return b'%b"sequence_number":%d%b' % (self._head, number, self.fill(text))


def _new_response(id: str, model: str, request: ResponsesRequest) -> ResponseObject:
    return ResponseObject(
        id=id,
        created_at=int(time.time()),
        status="in_progress",
        output=[],
        model=model,
        instructions=request.instructions,
        metadata=request.metadata or {},
        previous_response_id=request.previous_response_id,
        max_output_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_logprobs=request.top_logprobs or 0,
        tools=request.tools or [],
        tool_choice=request.tool_choice or "auto",
        parallel_tool_calls=request.parallel_tool_calls is not False,
        text=request.text or {"format": {"type": "text"}},
        reasoning=request.reasoning or {},
        store=request.is_stored(),
    )
