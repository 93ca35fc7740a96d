"""Calls that are JSON objects, alone or in a list: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` and its like."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .. import json_text
from ..findings import Findings
from ..lark import FREE, LINE, Lark, exactly
from ..source import NotACall, Scan, Source
from .form import Where

_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_FIRST_KEYS = frozenset({*_NAMES, *_ARGUMENTS, "type", "function", "id", "tool_call_id"})


@dataclass(frozen=True)
class JsonCalls:
    """Objects behind one of the openers, and before one of `ends` if the model writes it.

    bare: nothing but the object says that it is a call. So it must name a function that was offered, and have arguments.
    `opener` and `name_key`, `arguments_key`, `listed` say how a grammar writes them.
    """

    openers: tuple[str, ...]
    ends: tuple[str, ...] = ()
    where: Where = "anywhere"
    bare: bool = False
    name_key: str = "name"
    arguments_key: str = "arguments"
    listed: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.openers, *self.ends)

    def read(self, opener: str, source: Source, found: Findings) -> Scan[None]:
        known = found.tools if self.bare else None
        stop = self.ends[0] if self.ends else ""
        if opener in "[{":
            source.at -= 1
        yield from source.space()
        listed = yield from source.take("[")
        yield from source.space()
        yield from _call(source, found, known, stop)
        while True:
            yield from source.space()
            separated = yield from source.take(",", ";")
            yield from source.space()
            if (yield from source.peek()) != "{" or not (listed or separated or not self.bare):
                break
            yield from _call(source, found, known, stop)
        if listed:
            yield from source.expect("]")
            yield from source.space()
        if self.ends:
            yield from source.take(*self.ends)

    def grammar(self, lark: Lark, functions: Mapping[str, Any], *, several: bool, opened: bool) -> str:
        one = " | ".join(self._object(lark, name, schema) for name, schema in functions.items())
        opening = "" if opened or self.bare else lark.text(self.openers[0]) + " "
        closing = f" {LINE} {lark.text(self.ends[0])}" if self.ends and not self.bare else ""
        if self.listed:
            objects = lark.repeated(f"({one})", between='"," /[ \\n]?/', several=several)
            return f'{opening}"[" {LINE} {objects} {LINE} "]"{closing}'
        first = f"{opening}{LINE} ({one}){closing}"
        again = first if not opened else f"{lark.text(self.openers[0])} {first}"
        between = '"; "' if self.bare else LINE
        return f"{first} ({between} {again})*" if several else first

    def among_text(self, lark: Lark, functions: Mapping[str, Any], markers: Collection[str]) -> str:
        """Any text, in which arguments behind the name of one of these functions follow its schema. markers: tokens that text may have."""
        held = (f"{lark.free_until(_before_arguments(name))} /[ \\n]?/ {lark.json(schema)}" for name, schema in functions.items())
        marked = (f"{FREE} {lark.text(marker)}" for marker in markers)
        return f"({' | '.join(f'({one})' for one in (*held, *marked))})* {lark.rule(FREE)}"

    def _object(self, lark: Lark, name: str, schema: Any) -> str:
        before = f'{{"{self.name_key}": {json.dumps(name, ensure_ascii=False)}, "{self.arguments_key}": '
        return f'({lark.text(before)} {lark.json(schema)} "}}")'


def _before_arguments(name: str) -> str:
    """A pattern of what stands between the brace of a call of this function and its arguments."""
    known = r'("(type|id|tool_call_id)"\s*:\s*"[^"]*"\s*,\s*)*'
    names = "|".join((*_NAMES, "function"))
    return rf'\{{\s*{known}"({names})"\s*:\s*{exactly(json.dumps(name, ensure_ascii=False))}\s*,\s*"({"|".join(_ARGUMENTS)})"\s*:'


def _call(source: Source, found: Findings, known: Collection[str] | None, stop: str) -> Scan[None]:
    """One object, whose keys may come in any order. `known`: what it may name, None for anything."""
    yield from source.expect("{")
    name, early = "", None
    before, key = found.count, ""
    while True:
        yield from source.space()
        first, key = not key, (yield from json_text.whole_string(source))
        if first and known is not None and key not in _FIRST_KEYS:
            raise NotACall
        yield from source.space()
        yield from source.expect(":")
        yield from source.space()
        if key == "function" and (yield from source.peek()) == "{":
            yield from _call(source, found, known, stop)
        elif (key in _NAMES or key == "function") and not name:
            name = yield from json_text.whole_string(source)
            if not name or (known is not None and name not in known):
                raise NotACall
        elif key in _ARGUMENTS and name and found.count == before:
            found.call(name)
            yield from _arguments(source, found, stop)
        elif key in _ARGUMENTS and early is None and found.count == before:
            early = _as_arguments((yield from json_text.whole(source)))
        else:
            yield from json_text.whole(source)
        yield from source.space()
        if not (yield from source.take(",")):
            break
    if not name and found.count == before:
        raise NotACall
    if found.count == before:
        yield from source.expect("}")
        if known is not None and early is None:
            raise NotACall
        found.call(name)
        found.arguments(early or "{}")
    else:
        yield from source.take("}")


def _arguments(source: Source, found: Findings, stop: str) -> Scan[None]:
    """An object as it comes. Some models write it as a string, or null for none."""
    if (yield from source.peek()) in ("", "{"):
        yield from json_text.value(source, found.arguments, stop)
    else:
        found.arguments(_as_arguments((yield from json_text.whole(source))))


def _as_arguments(value: object) -> str:
    if isinstance(value, str):
        return value.strip() or "{}"
    return "{}" if value is None else json.dumps(value, ensure_ascii=False)
