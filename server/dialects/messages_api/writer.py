"""Writes answers as Anthropic's Messages API does."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from ....errors import EngineError
from ...http.sse import EventTemplate, named_event
from ...parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from ...text.assembler import Assembler, Delta, Finish
from ..planning import Ask
from .answers import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    SignatureDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ThinkingDetails,
    ToolUseBlock,
)
from .errors import messages_error

_NO_INPUT = msgspec.Raw(b"{}")


class MessageWriter:
    """A Dialect. shows_thinking: whether blocks of thinking have their text."""

    def __init__(self, model: str, ask: Ask, *, shows_thinking: bool) -> None:
        self._model = model
        self._max_tokens = ask.max_tokens
        self._id = f"msg_{ask.id}"
        self._shows_thinking = shows_thinking
        self._assembler: Assembler
        self._open: Block | None = None
        self._index = -1
        self._digest = _digest()
        self._text_event: EventTemplate | None = None
        self._finish: Finish | None = None
        self.headers = {"x-request-id": self._id, "request-id": self._id}

    def begin(self, assemblers: Sequence[Assembler]) -> bytes:
        (self._assembler,) = assemblers
        return _written((MessageStart(self._message([])), Ping()))

    def delta(self, index: int, delta: Delta) -> bytes:
        if self._text_event is not None and (text := delta.only_content()):
            return self._text_event.fill(text)
        self._finish = delta.finish_reason
        return _written(event for piece in delta.all_pieces() for event in self._said(piece))

    def end(self) -> bytes:
        ending = Ending(self._stop_reason(), self._assembler.stop_string)
        return _written((*self._close(), MessageDelta(ending, self._usage()), MessageStop()))

    def error(self, error: EngineError) -> bytes:
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode(messages_error(error))

    def whole(self, assemblers: Sequence[Assembler], deltas: Sequence[Sequence[Delta]]) -> Message:
        (self._assembler,) = assemblers
        delta = Delta.joined(deltas[0])
        self._finish = delta.finish_reason
        return self._message(list(self._blocks(delta.all_pieces())))

    def _message(self, content: list[Block]) -> Message:
        return Message(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=self._stop_reason(),
            stop_sequence=None if self._finish is None else self._assembler.stop_string,
            usage=self._usage(),
        )

    def _stop_reason(self) -> StopReason | None:
        match self._finish:
            case "length":
                clipped = self._max_tokens is not None and self._assembler.generated < self._max_tokens
                return "model_context_window_exceeded" if clipped else "max_tokens"
            case "tool_calls":
                return "tool_use"
            case "stop":
                return "end_turn" if self._assembler.stop_string is None else "stop_sequence"
        return None

    def _usage(self) -> MessageUsage:
        """When a stream begins, of the prompt alone."""
        assembler, cached = self._assembler, self._assembler.cached_tokens
        generated, thought = (0, 0) if self._finish is None else (assembler.generated, assembler.reasoning_tokens)
        return MessageUsage(len(assembler.plan.prompt) - cached, generated, cached, ThinkingDetails(thought))

    def _said(self, piece: Piece) -> Iterator[MessageEvent]:
        """A delta of the open block, or of one that begins when that ends."""
        match piece:
            case Content(text):
                if not isinstance(self._open, TextBlock):
                    yield from self._start(TextBlock(""))
                    self._text_event = self._text_template()
                yield BlockDelta(self._index, TextDelta(text))
            case Reasoning(text):
                if not isinstance(self._open, ThinkingBlock):
                    yield from self._start(ThinkingBlock("", ""))
                self._digest.update(text.encode())
                if self._shows_thinking:
                    yield BlockDelta(self._index, ThinkingDelta(text))
            case CallStart(_, id, name):
                yield from self._start(ToolUseBlock(id, name, _NO_INPUT))
            case CallArguments(_, text):
                yield BlockDelta(self._index, InputJsonDelta(text))

    def _start(self, block: Block) -> Iterator[MessageEvent]:
        yield from self._close()
        self._index += 1
        self._open = block
        yield BlockStart(self._index, block)

    def _close(self) -> Iterator[MessageEvent]:
        if isinstance(self._open, ThinkingBlock):
            yield BlockDelta(self._index, SignatureDelta(self._digest.hexdigest()))
            self._digest = _digest()
        if self._open is not None:
            yield BlockStop(self._index)
        self._open = self._text_event = None

    def _text_template(self) -> EventTemplate:
        index = self._index
        return EventTemplate(lambda text: named_event(BlockDelta(index, TextDelta(text))))

    def _blocks(self, pieces: Iterable[Piece]) -> Iterator[Block]:
        """The blocks that a stream of the same pieces has. Neighbours of one kind are one piece."""
        call: ToolUseBlock | None = None
        for piece in pieces:
            if call is not None and not isinstance(piece, CallArguments):
                yield call
                call = None
            match piece:
                case Content(text):
                    yield TextBlock(text)
                case Reasoning(text):
                    digest = _digest(text).hexdigest()
                    yield ThinkingBlock(text if self._shows_thinking else "", digest)
                case CallStart(_, id, name):
                    call = ToolUseBlock(id, name, _NO_INPUT)
                case CallArguments(_, text) if call is not None:
                    call.input = _input(text)
        if call is not None:
            yield call


def _digest(text: str = "") -> "hashlib.blake2b":
    """Of a block of thinking: its signature. Nothing is proven by it, but clients want one."""
    return hashlib.blake2b(text.encode(), digest_size=32)


def _input(arguments: str) -> msgspec.Raw:
    """Arguments that were cut off are no JSON: they are given as text, so that nothing is lost."""
    try:
        msgspec.json.decode(arguments, type=dict)
    except msgspec.DecodeError:
        return msgspec.Raw(msgspec.json.encode({"INVALID_JSON": arguments}))
    return msgspec.Raw(arguments.encode())


def _written(events: Iterable[MessageEvent]) -> bytes:
    return b"".join(map(named_event, events))
