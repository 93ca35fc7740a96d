"""Calls of Gemma: `call:f{key:<escape>text<escape>,n:5,list:[1,2],nested:{a:true}}`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..findings import Findings
from ..json_text import escaped
from ..lark import Lark
from ..schema_types import json_of
from ..source import Emit, NotACall, Scan, Source
from .form import Where

_PLAIN = re.compile(r"[^,{}\[\]<]+")


@dataclass(frozen=True)
class BraceCalls:
    """call_open call:NAME{...} call_end, with `quote` on both sides of a string."""

    call_open: str
    call_end: str
    quote: str
    where: Where = "anywhere"

    @property
    def openers(self) -> tuple[str, ...]:
        return (self.call_open,)

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.call_open, self.call_end, self.quote)

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        yield from source.space()
        yield from source.expect("call:")
        name = yield from source.word()
        if not name or (yield from source.peek()) != "{":
            raise NotACall
        found.call(name)
        yield from self._value(source, found.arguments)
        yield from source.space()
        yield from source.take(self.call_end)

    def _value(self, source: Source, emit: Emit) -> Scan[None]:
        yield from source.space()
        if (yield from source.take(self.quote)):
            emit('"')
            if (yield from source.flow((self.quote,), lambda text: emit(escaped(text)))):
                emit('"')
        elif (yield from source.take("{")):
            yield from self._items(source, emit, "}")
        elif (yield from source.take("[")):
            yield from self._items(source, emit, "]")
        else:
            emit(json_of((yield from self._plain(source)), frozenset()))

    def _items(self, source: Source, emit: Emit, end: str) -> Scan[None]:
        emit("{" if end == "}" else "[")
        separator = ""
        while True:
            yield from source.space()
            if (yield from source.take(end)):
                emit(end)
                return
            if not (yield from source.peek()):
                return
            emit(separator)
            separator = ", "
            if end == "}":
                quoted = yield from source.take(self.quote)
                key = (yield from source.until(self.quote)) if quoted else (yield from source.until(":")).strip()
                if quoted:
                    yield from source.expect(":")
                emit(f'"{escaped(key)}": ')
            yield from self._value(source, emit)
            yield from source.space()
            if not (yield from source.take(",")) and (yield from source.peek()) not in ("", end):
                raise NotACall

    def _plain(self, source: Source) -> Scan[str]:
        parts: list[str] = []
        while (yield from source.peek()) and (match := _PLAIN.match(source.text, source.at)):
            parts.append(source.skip(len(match[0])))
        return "".join(parts).strip()

    def grammar(self, lark: Lark, functions: Mapping[str, Any], *, several: bool, opened: bool) -> str:
        calls = (f"({lark.text('call:' + name)} {self._object(lark, schema)})" for name, schema in functions.items())
        one = f"({' | '.join(calls)}) {lark.text(self.call_end)}"
        call = f"{lark.text(self.call_open)} {one}"
        return (one if opened else call) + (f" ({call})*" if several else "")

    def _object(self, lark: Lark, schema: Any) -> str:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        required = schema.get("required", ()) if isinstance(schema, Mapping) else ()
        items = [(f"({lark.text(key + ':')} {self._typed(lark, each)})", key in required) for key, each in (properties or {}).items()]
        return f'"{{" {lark.sequence(items, lark.text(","))} "}}"'

    def _typed(self, lark: Lark, schema: Any) -> str:
        found = schema if isinstance(schema, Mapping) else {}
        match found.get("type"):
            case "object":
                return self._object(lark, found)
            case "array":
                each = self._typed(lark, found.get("items"))
                return f'"[" ({each} ("," {each})*)? "]"'
            case "integer" | "number" | "boolean" | "null":
                return lark.json(found)
        if isinstance(choices := found.get("enum"), list) and choices:
            return f"{lark.text(self.quote)} ({' | '.join(lark.text(str(choice)) for choice in choices)}) {lark.text(self.quote)}"
        return f"{lark.text(self.quote)} {lark.free(self.quote)}"
