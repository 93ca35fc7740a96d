"""Reasoning between two marks, and marks that say nothing."""

from dataclasses import dataclass

from ..findings import Findings
from ..lark import SPACE, Lark
from ..source import Scan, Source, held_back
from .form import Where


@dataclass(frozen=True)
class Think:
    """Everything from an opener to one of `ends`. ends_before: what ends it as well, and is not part of it.

    implied: an answer begins inside, even if neither it nor the prompt has the opener.
    """

    openers: tuple[str, ...]
    ends: tuple[str, ...]
    where: Where = "start"
    ends_before: tuple[str, ...] = ()
    implied: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.openers, *self.ends)

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        """Space at both ends is none of the reasoning."""
        found.in_reasoning = True
        yield from source.space()
        while opener and (yield from source.take(opener)):  # a model may write again what the prompt has
            yield from source.space()
        marks = (*self.ends, *self.ends_before)
        while True:
            places = [(place, mark) for mark in marks if (place := source.text.find(mark, source.at)) >= 0]
            end, mark = min(places, default=(len(source.text), ""))
            held = 0 if mark or source.ended else held_back(source.text, source.at, marks)
            shown = source.text[source.at : end - held]
            found.reasoning(source.skip(len(shown.rstrip())))
            if mark or source.ended:
                break
            yield
        found.in_reasoning = False
        yield from source.space()
        if mark in self.ends:
            source.at += len(mark)

    def before_content(self, lark: Lark, *, inside: bool, most_tokens: int | None) -> str:
        """Reasoning and the space behind it. inside: the answer begins in it; otherwise there may be none."""
        reasoning = f"{lark.free(*self.ends, most_tokens=most_tokens)} {SPACE}"
        return reasoning if inside else f"(({' | '.join(map(lark.text, self.openers))}) {reasoning})?"


@dataclass(frozen=True)
class Silent:
    """Marks around plain text, of which a reader sees nothing."""

    openers: tuple[str, ...]
    where: Where = "anywhere"

    @property
    def markers(self) -> tuple[str, ...]:
        return self.openers

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        return
        yield
