"""A form of answers that is easy to write, and its parser."""

import re
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import strategies as st

from engine.server.parsing.pieces import CallArguments, CallId, CallStart, Content, Piece, Reasoning

_ARGUMENTS = '0123456789{}":'


@dataclass
class Marks:
    """Letters are reasoning or content, what JSON needs arguments; `<hm>` switches to reasoning and back, `<f>` begins a call of f."""

    call_id: CallId
    reasoning: bool = False
    calls: int = 0
    held: str = ""

    def push(self, text: str) -> list[Piece]:
        *parts, last = re.split(r"(<\w+>)", self.held + text)
        self.held = last[last.find("<") :] if "<" in last else ""
        return [piece for part in [*parts, last.removesuffix(self.held)] if part for piece in self._piece(part)]

    def end(self) -> list[Piece]:
        return [Content(self.held)] if self.held else []

    def _piece(self, part: str) -> list[Piece]:
        match re.fullmatch(r"<(\w+)>", part):
            case None if set(part) <= set(_ARGUMENTS):
                return [CallArguments(self.calls - 1, part)]
            case None:
                return [Reasoning(part) if self.reasoning else Content(part)]
            case tag if tag[1] == "hm":
                self.reasoning = not self.reasoning
                return []
            case tag:
                self.reasoning = False
                self.calls += 1
                return [CallStart(self.calls - 1, self.call_id(self.calls - 1), tag[1])]


@dataclass
class MarksParsing:
    markers: frozenset[str] = field(default_factory=frozenset)

    def begin(self, call_id: CallId) -> Marks:
        return Marks(call_id)


_LETTERS = st.text("aé <", min_size=1, max_size=3)
_PARTS = st.one_of(_LETTERS.map("<hm><hm>{}".format), _LETTERS.map("<hm>{}<hm>".format), st.sampled_from(["<f>{}", '<g>{"1":2}']))


def _split(answer: str, at: set[int]) -> list[str]:
    places = [0, *sorted(place for place in at if 0 < place < len(answer)), len(answer)]
    return [answer[start:end] for start, end in pairwise(places)]


SPLIT_ANSWERS = st.builds(_split, st.lists(_PARTS, min_size=1, max_size=5).map("".join), st.sets(st.integers(1, 60)))
"""Chunks of answers with content, reasoning and calls."""
