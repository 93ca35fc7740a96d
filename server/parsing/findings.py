"""What the readers of an answer have found so far."""

from collections.abc import Mapping
from typing import Any

from .pieces import CallArguments, CallId, CallStart, Content, Piece, Reasoning


class Findings:
    """Collects pieces.

    tools: the schema of the parameters of each function that was offered. most_calls: further calls are left out.
    shows_reasoning: whether reasoning is a piece, or left out.
    calls: how many have begun. in_reasoning: whether a reader is inside of reasoning.
    at_line_start, at_start: whether nothing but space stands before what comes next, in its line and in all of the content.
    """

    def __init__(self, call_id: CallId, tools: Mapping[str, Any], most_calls: int | None, *, shows_reasoning: bool = True) -> None:
        self.tools = tools
        self.calls = 0
        self.in_reasoning = False
        self.at_line_start = self.at_start = True
        self.count = 0
        self._call_id = call_id
        self._most_calls = most_calls
        self._shows_reasoning = shows_reasoning
        self._dropping = False
        self._pieces: list[Piece] = []

    def take(self) -> list[Piece]:
        """Those that were found since the last time."""
        pieces, self._pieces = self._pieces, []
        return pieces if self._shows_reasoning else [piece for piece in pieces if not isinstance(piece, Reasoning)]

    def content(self, text: str) -> None:
        self._add(Content(text), text)
        line = text.rpartition("\n")[2]
        self.at_line_start = (self.at_line_start or line != text) and not line.strip()
        self.at_start = self.at_start and not text.strip()

    def reasoning(self, text: str) -> None:
        self._add(Reasoning(text), text)

    def call(self, name: str, id: str | None = None) -> None:
        """A call begins. id: what the model calls it, if it says that."""
        self._dropping = self.calls == self._most_calls
        self.count += 1
        if not self._dropping:
            self._pieces.append(CallStart(self.calls, id or self._call_id(self.calls), name))
            self.calls += 1

    def arguments(self, text: str) -> None:
        """Of the call that began last."""
        if not self._dropping:
            self._add(CallArguments(self.calls - 1, text), text)

    def _add(self, piece: Piece, text: str) -> None:
        if text:
            self._pieces.append(piece)
            self.count += 1
