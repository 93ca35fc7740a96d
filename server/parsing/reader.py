"""Reads an answer: plain text, and forms where their openers stand."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .findings import Findings
from .forms.form import Form
from .pieces import Piece
from .source import NotACall, Scan, Source, held_back


class _Openers:
    """What a form may begin with, the longest of those at the same place first."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted(texts, key=len, reverse=True))
        self.pattern = re.compile("|".join(map(re.escape, self.texts)))
        self._first = re.compile("[" + re.escape("".join({text[0] for text in self.texts})) + "]") if self.texts else self.pattern

    def may_begin(self, text: str, start: int) -> bool:
        """Whether one may begin in text[start:]; False is quickly found."""
        return self._first.search(text, start) is not None


class Reader:
    """An OutputParser of these forms; of those with the same opener the first that fits wins.

    inside: the (form, opener) that the prompt has begun. What turns out to be of no form is content, whole.
    Space around what a form takes belongs to the form.
    """

    def __init__(self, forms: Sequence[Form], found: Findings, inside: tuple[Form, str] | None = None) -> None:
        self._found = found
        self._source = Source()
        self._forms: dict[str, list[Form]] = defaultdict(list)
        for form in forms:
            for opener in form.openers:
                self._forms[opener].append(form)
        self._first = _Openers(self._forms)
        self._later = _Openers(opener for opener, them in self._forms.items() if any(form.where != "start" for form in them))
        self._scan = self._read(inside)
        next(self._scan, None)

    @property
    def reasoning(self) -> bool:
        return self._found.in_reasoning

    @property
    def calls(self) -> int:
        return self._found.calls

    def push(self, text: str) -> list[Piece]:
        if text:
            self._source.add(text)
            next(self._scan, None)
        return self._found.take()

    def end(self) -> list[Piece]:
        self._source.ended = True
        next(self._scan, None)
        return self._found.take()

    def _read(self, inside: tuple[Form, str] | None) -> Scan[None]:
        source, found = self._source, self._found
        if inside is not None:
            form, opener = inside
            yield from form.read(opener, source, found)
            yield from source.space()
        while True:
            opener = yield from self._content()
            if not opener:
                return
            space = source.skip(self._opener_at(opener))
            source.at += len(opener)
            if not (yield from self._forms_at(space, opener)):
                source.at += len(space)
                found.content(space + source.skip(len(opener)))

    def _opener_at(self, opener: str) -> int:
        return self._source.text.index(opener, self._source.at) - self._source.at

    def _forms_at(self, space: str, opener: str) -> Scan[bool]:
        """Whether one of the forms with this opener is what stands here. Otherwise nothing, not even `space`, has been read."""
        source, found = self._source, self._found
        for form in self._forms[opener]:
            if not self._allows(form, space):
                continue
            source.at -= len(space) + len(opener)
            source.keep()
            source.at += len(space) + len(opener)
            before = found.count
            try:
                yield from self._watched(form.read(opener, source, found), before)
                fits = True
            except (NotACall, RecursionError):  # nested deeper than any call
                fits = found.count > before
            if fits:
                source.forget()
                found.at_line_start = True
                yield from source.space()
                return True
            source.back()
            source.at += len(space) + len(opener)
        source.at -= len(space) + len(opener)
        return False

    def _watched(self, scan: Scan[None], before: int) -> Scan[None]:
        """The same; once something was found, what was read need not be kept."""
        for _ in scan:
            if self._found.count > before:
                self._source.forget()
            yield

    def _content(self) -> Scan[str]:
        """Content up to an opener and the space before it, which are not read. The opener, "" at the end."""
        source, found = self._source, self._found
        while True:
            openers = self._first if found.at_start else self._later
            if not openers.texts:
                found.content(source.skip(len(source.text) - source.at))
            elif (may_begin := openers.may_begin(source.text, source.at)) and (place := self._next_opener(openers)):
                start, opener = place
                found.content(source.skip(start - source.at))
                return opener
            elif source.at < len(source.text):
                held = held_back(source.text, source.at, openers.texts) if may_begin and not source.ended else 0
                shown = source.text[source.at : len(source.text) - held]
                found.content(source.skip(len(shown if source.ended else shown.rstrip())))
            if source.ended:
                found.content(source.skip(len(source.text) - source.at))
                return ""
            yield

    def _next_opener(self, openers: "_Openers") -> tuple[int, str] | None:
        """(start, opener) of the first one at a place where it may stand; `start` is before the space in front of it."""
        source = self._source
        for match in openers.pattern.finditer(source.text, source.at):
            if not source.ended and held_back(source.text, match.start(), openers.texts) == len(source.text) - match.start():
                return None  # a longer one may be coming
            before = source.text[source.at : match.start()]
            if any(self._allows(form, before) for form in self._forms[match[0]]):
                return source.at + len(before.rstrip()), match[0]
        return None

    def _allows(self, form: Form, before: str) -> bool:
        """Whether the form may begin after this text, which is content that comes next."""
        match form.where:
            case "anywhere":
                return True
            case "line":
                line = before.rpartition("\n")[2]
                return not line.strip() and (line != before or self._found.at_line_start)
            case "start":
                return self._found.at_start and not before.strip()
