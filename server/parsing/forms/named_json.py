"""Calls whose name stands before their JSON: `[TOOL_CALLS]name[ARGS]{...}` and the forms of special tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import json_text
from ..findings import Findings
from ..lark import LINE, Lark
from ..source import NotACall, Scan, Source
from .form import Where


@dataclass(frozen=True)
class NamedJson:
    """section_open call_open before_name NAME after_name {...} call_end ... section_end; what is "" is not written.

    id_mark: stands between the name and an id that the model gives. names_are_ids: `functions.NAME:INDEX` is name and id.
    """

    call_open: str
    after_name: str
    section_open: str = ""
    before_name: str = ""
    id_mark: str = ""
    call_end: str = ""
    section_end: str = ""
    names_are_ids: bool = False
    where: Where = "anywhere"

    @property
    def openers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.section_open, self.call_open)))

    @property
    def markers(self) -> tuple[str, ...]:
        texts = (self.section_open, self.call_open, self.after_name, self.id_mark, self.call_end, self.section_end)
        parts = self.before_name.partition("<")
        return tuple(text for text in (*texts, parts[1] + parts[2]) if text)

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        if opener == self.section_open:
            yield from source.space()
            yield from source.expect(self.call_open)
        while True:
            yield from self._call(source, found)
            yield from source.space()
            if self.section_end and (yield from source.take(self.section_end)):
                return
            if not (yield from source.take(self.call_open)):
                return

    def _call(self, source: Source, found: Findings) -> Scan[None]:
        yield from source.space()
        yield from source.take(self.before_name)
        written = yield from source.word()
        if not written:
            raise NotACall
        id = None
        if self.id_mark and (yield from source.take(self.id_mark)):
            id = yield from source.word()
        yield from source.space()
        taken = yield from source.take(self.after_name, self.after_name.strip())
        yield from source.space()
        if not taken and (yield from source.peek()) != "{":
            raise NotACall
        found.call(_function(written) if self.names_are_ids else written, written if self.names_are_ids else id)
        yield from json_text.value(source, found.arguments, self.call_end)
        yield from source.space()
        if self.call_end:
            yield from source.take(self.call_end, self.call_end.strip())

    def grammar(self, lark: Lark, functions: Mapping[str, Any], *, several: bool, opened: bool) -> str:
        one = "(" + " | ".join(self._written(lark, name, schema) for name, schema in functions.items()) + ")"
        call = f"{lark.text(self.call_open)} {one}"
        first = one if opened and not self.section_open else call
        section = "" if opened or not self.section_open else lark.text(self.section_open) + " "
        more = f" ({LINE} {call})*" if several else ""
        return f"{section}{first}{more}" + (f" {LINE} {lark.text(self.section_end)}" if self.section_end else "")

    def _written(self, lark: Lark, name: str, schema: Any) -> str:
        parts = (
            [lark.text(f"{self.before_name}functions.{name}:"), "/[0-9]{1,3}/"]
            if self.names_are_ids
            else [lark.text(self.before_name + name)]
        )
        parts += [lark.text(self.after_name), lark.json(schema)]
        return "(" + " ".join([*parts, lark.text(self.call_end)] if self.call_end else parts) + ")"


def _function(written: str) -> str:
    """`functions.get:0` is a call of get."""
    return written.removeprefix("functions.").partition(":")[0]
