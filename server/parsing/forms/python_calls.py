"""Calls that are written as Python: `[f(a=1, b="x"), g()]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..findings import Findings
from ..json_text import escaped
from ..lark import LINE, Lark
from ..schema_types import json_of_literal
from ..source import NotACall, Scan, Source
from .form import Where

_RUN = re.compile(r"""[^'"()\[\]{},]+""")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class PythonCalls:
    """Calls behind one of the openers, in brackets or one on each line, and before one of `ends`.

    bare: nothing but the text says that it is a call. So it must name a function that was offered.
    lines: a grammar puts each on a line of its own, instead of brackets around all.
    """

    openers: tuple[str, ...]
    ends: tuple[str, ...] = ()
    where: Where = "anywhere"
    bare: bool = False
    lines: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.openers, *self.ends) if not self.bare else ()

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        yield from source.space()
        listed = opener == "[" or (yield from source.take("["))
        while True:
            yield from source.space()
            yield from self._call(source, found)
            yield from source.space()
            if listed and (yield from source.take("]")):
                break
            separated = yield from source.take(",")
            if not separated and (listed or not (yield from source.peek()).isidentifier()):
                break
        yield from source.space()
        yield from source.take(*self.ends)

    def _call(self, source: Source, found: Findings) -> Scan[None]:
        name = yield from source.word()
        yield from source.expect("(")
        if not name or (self.bare and name not in found.tools):
            raise NotACall
        separator = "{"
        while True:
            yield from source.space()
            if (yield from source.take(")")):
                break
            key = yield from source.word()
            if not key:
                raise NotACall
            yield from source.space()
            yield from source.expect("=")
            if separator == "{":
                found.call(name)
            found.arguments(f'{separator}"{escaped(key)}": ')
            value = yield from _value(source)
            if not (yield from source.peek()):
                found.content(value)
                return
            found.arguments(json_of_literal(value))
            separator = ", "
            yield from source.take(",")
        if separator == "{":
            found.call(name)
        found.arguments("{}" if separator == "{" else "}")

    def grammar(self, lark: Lark, functions: Mapping[str, Any], *, several: bool, opened: bool) -> str:
        one = "(" + " | ".join(self._written(lark, name, schema) for name, schema in functions.items()) + ")"
        opening = "" if opened or self.bare else lark.text(self.openers[0]) + " "
        closing = f" {LINE} {lark.text(self.ends[0])}" if self.ends else ""
        if self.lines:
            return f"{opening}{LINE} {lark.repeated(one, between=lark.text(chr(10)), several=several)}{closing}"
        bracket = "" if opened and self.bare else '"[" '
        return f'{opening}{bracket}{lark.repeated(one, between=lark.text(", "), several=several)} "]"{closing}'

    def _written(self, lark: Lark, name: str, schema: Any) -> str:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        required = schema.get("required", ()) if isinstance(schema, Mapping) else ()
        items = [(f"({lark.text(key + '=')} {lark.json(each, schema)})", key in required) for key, each in (properties or {}).items()]
        return f'({lark.text(name + "(")} {lark.sequence(items, lark.text(", "))} ")")'


def _value(source: Source) -> Scan[str]:
    """The text of a value, before the comma or bracket that ends it."""
    parts: list[str] = []
    open: list[str] = []
    while char := (yield from source.peek()):
        if char in "'\"":
            yield from _string(source, parts)
        elif char in _CLOSING:
            open.append(_CLOSING[char])
            parts.append(source.skip(1))
        elif open and char == open[-1]:
            open.pop()
            parts.append(source.skip(1))
        elif char in ",)]}" and not open:
            break
        elif match := _RUN.match(source.text, source.at):
            parts.append(source.skip(len(match[0])))
        else:
            parts.append(source.skip(1))
    return "".join(parts)


def _string(source: Source, parts: list[str]) -> Scan[None]:
    quote = source.skip(1)
    parts.append(quote)
    while char := (yield from source.peek()):
        if char == "\\":
            while len(source.text) - source.at < 2 and not source.ended:
                yield
            parts.append(source.skip(2))
            continue
        parts.append(source.skip(1))
        if char == quote:
            return
