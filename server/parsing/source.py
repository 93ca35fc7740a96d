"""Text that comes in parts, for readers written as if all of it were there.

A reader is a generator that yields where it needs more text and goes on when there is some, so what it finds
depends on the text alone and not on where it was split.
"""

import re
from collections.abc import Callable, Collection, Generator
from typing import TypeVar

T = TypeVar("T")
Scan = Generator[None, None, T]
Emit = Callable[[str], None]
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[\w.\-:/]*")


class NotACall(Exception):
    """What was taken for a call is none: it is text."""


class Source:
    """text[at:] has not been read yet; `ended`: nothing follows it."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._keep: int | None = None

    def add(self, text: str) -> None:
        read = self.at if self._keep is None else self._keep
        self.text = self.text[read:] + text
        self.at -= read
        if self._keep is not None:
            self._keep = 0

    def keep(self) -> None:
        """Remember this place: `back` returns to it."""
        self._keep = self.at

    def back(self) -> None:
        assert self._keep is not None
        self.at, self._keep = self._keep, None

    def forget(self) -> None:
        """`back` is not going to be called."""
        self._keep = None

    def skip(self, count: int) -> str:
        taken = self.text[self.at : self.at + count]
        self.at += count
        return taken

    def peek(self) -> Scan[str]:
        """The next character, "" at the end."""
        while self.at == len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def starts(self, text: str) -> Scan[bool]:
        """Whether this is what comes next."""
        while not self.text.startswith(text, self.at):
            if self.ended or not text.startswith(self.text[self.at :]):
                return False
            yield
        return True

    def take(self, *texts: str) -> Scan[bool]:
        """Read one of these, if it comes next."""
        for text in texts:
            if (yield from self.starts(text)):
                self.at += len(text)
                return True
        return False

    def expect(self, *texts: str) -> Scan[None]:
        """Raises NotACall if none of these comes next."""
        if not (yield from self.take(*texts)):
            raise NotACall

    def space(self) -> Scan[None]:
        yield from self._run(_SPACE)

    def word(self) -> Scan[str]:
        """A name: letters, digits and what stands between them."""
        return (yield from self._run(_WORD))

    def _run(self, pattern: re.Pattern[str]) -> Scan[str]:
        taken = ""
        while True:
            match = pattern.match(self.text, self.at)
            assert match is not None
            taken += match[0]
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return taken
            yield

    def until(self, end: str) -> Scan[str]:
        """The text before `end`, which is read as well. Raises NotACall if it never comes."""
        seen = 0
        while (place := self.text.find(end, self.at + seen)) < 0:
            if self.ended:
                raise NotACall
            seen = max(0, len(self.text) - self.at - len(end) + 1)
            yield
        text = self.text[self.at : place]
        self.at = place + len(end)
        return text

    def flow(self, ends: Collection[str], emit: Emit) -> Scan[str]:
        """Emit text as it comes, up to the first of `ends`, which is read and returned; "" if the text ends before.

        None of them is the beginning of another.
        """
        pattern = re.compile("|".join(map(re.escape, sorted(ends, key=len, reverse=True))))
        while True:
            match = pattern.search(self.text, self.at)
            stop = match.start() if match else len(self.text) - (0 if self.ended else held_back(self.text, self.at, ends))
            if stop > self.at:
                emit(self.text[self.at : stop])
                self.at = stop
            if match:
                self.at = match.end()
                return match[0]
            if self.ended:
                return ""
            yield


def held_back(text: str, start: int, marks: Collection[str]) -> int:
    """How many characters at the end of text[start:] may be the beginning of a mark."""
    longest = max(map(len, marks), default=1)
    for size in range(min(longest - 1, len(text) - start), 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0
