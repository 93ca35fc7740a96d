"""The answers of chat completions and completions: a list of choices. The two differ only in their `Style`."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from ...errors import EngineError
from ..http.errors import error_answer
from ..http.sse import DONE, EventTemplate, event
from ..text.assembler import Assembler, Delta
from .answers import Answer, CompletionTokensDetails, PromptTokensDetails, Usage
from .planning import Ask


class Style(Protocol):
    """How choices are written in one API. `prefix` begins ids; the `*_object` names go in `object`."""

    prefix: str
    whole_object: str
    chunk_object: str

    def begin(self, answer: Answer[Any], first: Delta) -> None:
        """Write what a whole answer, or the chunk that opens a choice, says of the prompt. first: the first delta of its choice."""

    def opening(self, index: int, first: Delta) -> Any | None:
        """The choice of a chunk that comes before the text of choice `index`, if there is one. first: its first delta."""

    def chunk(self, index: int, delta: Delta) -> Any:
        """The choice of a chunk, for a delta with no more than one piece."""

    def whole(self, index: int, delta: Delta) -> Any:
        """The choice of a whole answer, all its deltas in one."""


class ChoicesWriter:
    """A Dialect. with_usage: whether a stream ends with one more chunk, which has the usage; continuous_usage: or every chunk has it."""

    def __init__(self, model: str, ask: Ask, style: Style, *, with_usage: bool, continuous_usage: bool = False) -> None:
        self._model = model
        self._ask = ask
        self._style = style
        self._with_usage = with_usage
        self._continuous_usage = continuous_usage
        self._created = int(time.time())
        self._id = f"{style.prefix}-{ask.id}"
        self._templates: dict[int, EventTemplate | None] = {}
        self._assemblers: Sequence[Assembler] = ()
        self.headers = {"x-request-id": self._id}

    def begin(self, assemblers: Sequence[Assembler]) -> bytes:
        self._assemblers = assemblers
        return b""

    def delta(self, index: int, delta: Delta) -> bytes:
        if index not in self._templates:
            opening = self._opening(index, delta)
            self._templates[index] = self._template(index)
            return opening + self.delta(index, delta)
        template = self._templates[index]
        if template is not None and (text := delta.only_content()):
            return template.fill(text)
        return self._events(index, delta)

    def end(self) -> bytes:
        if not self._with_usage:
            return DONE
        last = self._answer(self._style.chunk_object, [])
        last.usage = self._usage()
        return event(last) + DONE

    def error(self, error: EngineError) -> bytes:
        return event(error_answer(error)) + DONE

    def whole(self, assemblers: Sequence[Assembler], deltas: Sequence[Sequence[Delta]]) -> Answer[Any]:
        self._assemblers = assemblers
        wholes = self._with_prompts([Delta.joined(each) for each in deltas])
        result = self._answer(self._style.whole_object, [self._style.whole(index, whole) for index, whole in enumerate(wholes)])
        self._style.begin(result, wholes[0])
        result.usage = self._usage()
        return result

    def _with_prompts(self, wholes: list[Delta]) -> list[Delta]:
        """The first choice of a prompt has scored it, and tells its experts, for all."""
        choices = self._ask.choices
        return [self._with_prompt(whole, wholes[index - index % choices], index) for index, whole in enumerate(wholes)]

    def _with_prompt(self, whole: Delta, first: Delta, index: int) -> Delta:
        if whole is first:
            return whole
        shared = max(0, len(self._assemblers[index].plan.prompt) - (self._ask.first_routed or 0))
        return msgspec.structs.replace(whole, scores=first.scores, routes=[*first.routes[:shared], *whole.routes])

    def _opening(self, index: int, first: Delta) -> bytes:
        """The event that comes before the text of a choice."""
        choice = self._style.opening(index, first)
        if choice is None:
            return b""
        chunk = self._chunk([choice])
        self._style.begin(chunk, first)
        return event(chunk)

    def _events(self, index: int, delta: Delta) -> bytes:
        says_something = delta.all_pieces() or delta.finish_reason or (self._ask.names_tokens and (delta.tokens or delta.ids))
        if not says_something:
            return b""
        return b"".join(event(self._chunk([self._style.chunk(index, part)])) for part in delta.parts())

    def _template(self, index: int) -> EventTemplate | None:
        """`_events` for deltas that are nothing but text, None if there is more to them."""
        if self._ask.names_tokens or self._continuous_usage:
            return None
        return EventTemplate(lambda text: event(self._chunk([self._style.chunk(index, Delta(text, []))])))

    def _chunk(self, choices: list[Any]) -> Answer[Any]:
        chunk = self._answer(self._style.chunk_object, choices)
        if self._with_usage:
            chunk.usage = self._usage_so_far() if self._continuous_usage else None
        return chunk

    def _answer(self, kind: str, choices: list[Any]) -> Answer[Any]:
        return Answer(id=self._id, object=kind, created=self._created, model=self._model, choices=choices)

    def _usage_so_far(self) -> Usage:
        """Choices count from the chunk on that opens them, in which nothing is said yet."""
        return self._usage([assembler for index, assembler in enumerate(self._assemblers) if index in self._templates])

    def _usage(self, said: Sequence[Assembler] | None = None) -> Usage:
        """Of the choices `said`, of all if None. A prompt counts once, however many choices are made from it."""
        assemblers = self._assemblers
        firsts = assemblers[:: self._ask.choices]
        prompt = sum(len(assembler.plan.prompt) for assembler in firsts)
        generated = sum(assembler.generated for assembler in (assemblers if said is None else said))
        cached = sum(assembler.cached_tokens for assembler in firsts)
        reasoning = sum(assembler.reasoning_tokens for assembler in assemblers)
        return Usage(prompt, generated, prompt + generated, PromptTokensDetails(cached), CompletionTokensDetails(reasoning))
