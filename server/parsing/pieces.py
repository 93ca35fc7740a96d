"""What an answer consists of, in the order in which the model says it. Every API writes its events from these."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec


class Content(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """Text that the model writes before it answers."""

    text: str


class CallStart(msgspec.Struct, frozen=True):
    """Call number `index` (from 0) of the answer begins. Its arguments follow."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """More of the arguments of call `index`; joined they are one JSON object, unless the answer was cut off."""

    index: int
    text: str


Piece = Content | Reasoning | CallStart | CallArguments
CallId = Callable[[int], str]
"""The id of the call with this index."""


class OutputParser(Protocol):
    """Reads one answer as it comes. However its text is split, the pieces joined are the same.

    reasoning: whether what comes next is reasoning, as far as is known.
    calls: how many have begun.
    """

    @property
    def reasoning(self) -> bool: ...

    @property
    def calls(self) -> int: ...

    def push(self, text: str) -> list[Piece]:
        """The pieces that this text completes."""

    def end(self) -> list[Piece]:
        """What was held back, once it is known that nothing follows."""


class Parsing(Protocol):
    """How the answers to one request are read.

    markers: texts of special tokens that the parser must see; readers are shown no other special tokens either.
    """

    @property
    def markers(self) -> frozenset[str]: ...

    def begin(self, call_id: CallId) -> OutputParser:
        """For one answer."""


def call_ids(sequence: str) -> CallId:
    """Ids of the calls of one sequence: nine letters and digits, the only form that every model's template takes."""
    return lambda index: hashlib.blake2b(f"{sequence}-{index}".encode(), digest_size=16).hexdigest()[:9]


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same with neighbours of one kind in one, as if all had come at once."""
    result: list[Piece] = []
    for piece in pieces:
        match (result[-1] if result else None), piece:
            case Content(before), Content(text):
                result[-1] = Content(before + text)
            case Reasoning(before), Reasoning(text):
                result[-1] = Reasoning(before + text)
            case CallArguments(index, before), CallArguments(same, text) if index == same:
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(piece)
    return result


@dataclass
class Call:
    """A whole call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Message:
    """A whole answer, sorted by kind."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> "Message":
        message = cls()
        for piece in pieces:
            match piece:
                case Content(text):
                    message.content += text
                case Reasoning(text):
                    message.reasoning += text
                case CallStart(_, id, name):
                    message.calls.append(Call(id, name))
                case CallArguments(index, text):
                    message.calls[index].arguments += text
        return message
