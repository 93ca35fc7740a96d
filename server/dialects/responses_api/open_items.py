"""Items of an answer while they grow: the events that begin one, add to it and end it, not yet numbered."""

from collections.abc import Sequence
from typing import Protocol

from ..answers import ContentLogprob
from .answers import FunctionCallItem, MessageItem, OutputItem, OutputText, ReasoningItem, ReasoningText, Status
from .events import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemAdded,
    ItemDone,
    OutputTextDelta,
    OutputTextDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ResponseEvent,
)


class OpenItem(Protocol):
    """`begin`, `add` for every text, `end`; then `item` is whole. texts: those that were added."""

    texts: list[str]

    @property
    def item(self) -> OutputItem: ...

    def begin(self) -> list[ResponseEvent]: ...

    def add(self, text: str) -> ResponseEvent: ...

    def end(self, status: Status) -> list[ResponseEvent]: ...


class OpenMessage:
    """logprobs: of the tokens so far; those given with a text are in its event."""

    def __init__(self, index: int, id: str) -> None:
        self.item = MessageItem(id)
        self.texts: list[str] = []
        self.logprobs: list[ContentLogprob] = []
        self._index = index

    def begin(self) -> list[ResponseEvent]:
        added = ItemAdded(output_index=self._index, item=MessageItem(self.item.id))
        return [added, PartAdded(output_index=self._index, item_id=self.item.id, part=OutputText(""))]

    def add(self, text: str, logprobs: Sequence[ContentLogprob] = ()) -> OutputTextDelta:
        self.texts.append(text)
        self.logprobs += logprobs
        return self.delta(text, logprobs)

    def delta(self, text: str, logprobs: Sequence[ContentLogprob] = ()) -> OutputTextDelta:
        """The event of a text that is added elsewhere."""
        return OutputTextDelta(output_index=self._index, item_id=self.item.id, delta=text, logprobs=list(logprobs))

    def end(self, status: Status) -> list[ResponseEvent]:
        part = OutputText("".join(self.texts), logprobs=self.logprobs)
        self.item.content, self.item.status = [part], status
        return [
            OutputTextDone(output_index=self._index, item_id=self.item.id, text=part.text, logprobs=self.logprobs),
            PartDone(output_index=self._index, item_id=self.item.id, part=part),
            ItemDone(output_index=self._index, item=self.item),
        ]


class OpenReasoning:
    def __init__(self, index: int, id: str) -> None:
        self.item = ReasoningItem(id)
        self.texts: list[str] = []
        self._index = index

    def begin(self) -> list[ResponseEvent]:
        added = ItemAdded(output_index=self._index, item=ReasoningItem(self.item.id))
        return [added, PartAdded(output_index=self._index, item_id=self.item.id, part=ReasoningText(""))]

    def add(self, text: str) -> ReasoningDelta:
        self.texts.append(text)
        return ReasoningDelta(output_index=self._index, item_id=self.item.id, delta=text)

    def end(self, status: Status) -> list[ResponseEvent]:
        part = ReasoningText("".join(self.texts))
        self.item.content, self.item.status = [part], status
        return [
            ReasoningDone(output_index=self._index, item_id=self.item.id, text=part.text),
            PartDone(output_index=self._index, item_id=self.item.id, part=part),
            ItemDone(output_index=self._index, item=self.item),
        ]


class OpenCall:
    def __init__(self, index: int, id: str, call_id: str, name: str) -> None:
        self.item = FunctionCallItem(id, call_id, name)
        self.texts: list[str] = []
        self._index = index

    def begin(self) -> list[ResponseEvent]:
        return [ItemAdded(output_index=self._index, item=FunctionCallItem(self.item.id, self.item.call_id, self.item.name))]

    def add(self, text: str) -> ArgumentsDelta:
        self.texts.append(text)
        return ArgumentsDelta(output_index=self._index, item_id=self.item.id, delta=text)

    def end(self, status: Status) -> list[ResponseEvent]:
        self.item.arguments, self.item.status = "".join(self.texts), status
        item = self.item
        return [
            ArgumentsDone(output_index=self._index, item_id=item.id, name=item.name, arguments=item.arguments),
            ItemDone(output_index=self._index, item=item),
        ]
