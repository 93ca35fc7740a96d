"""Calls whose parameters are elements: `<function=f><parameter=p>value</parameter></function>` and its like."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..findings import Findings
from ..json_text import escaped
from ..lark import LINE, Lark
from ..schema_types import json_of, types_of
from ..source import NotACall, Scan, Source
from .form import Where


@dataclass(frozen=True)
class XmlCalls:
    """[section_open] call_open NAME after_name (key_open KEY key_end ... value_open VALUE value_end)* call_end [section_end].

    What is "" is not written. What stands between key_end and value_open are attributes: `string="true"` makes the value text.
    own_line, typed: values have lines of their own, and that attribute, where a grammar writes them.
    """

    call_open: str
    after_name: str
    key_open: str
    key_end: str
    value_open: str
    value_end: str
    call_end: str
    section_open: str = ""
    section_end: str = ""
    own_line: bool = False
    typed: bool = False
    where: Where = "anywhere"

    @property
    def openers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.section_open, self.call_open)))

    @property
    def markers(self) -> tuple[str, ...]:
        texts = (self.call_open, self.key_open, self.key_end, self.value_open, self.value_end, self.call_end)
        return tuple(filter(None, (*texts, self.section_open, self.section_end)))

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
        name = yield from source.word()
        if not name:
            raise NotACall
        if self.after_name:
            yield from source.expect(self.after_name)
        yield from source.space()
        if not ((yield from source.starts(self.key_open)) or (yield from source.starts(self.call_end))):
            raise NotACall
        found.call(name)
        separator = "{"
        while (yield from source.take(self.key_open)):
            yield from self._parameter(separator, source, found, found.tools.get(name))
            separator = ", "
            yield from source.space()
        complete = yield from source.take(self.call_end)
        if complete or not source.ended:
            found.arguments("{}" if separator == "{" else "}")
        if not complete:
            raise NotACall

    def _parameter(self, separator: str, source: Source, found: Findings, schema: object) -> Scan[None]:
        """schema: of all parameters. A value that is cut off is no JSON yet: it is content, unless it is a string."""
        key = (yield from source.until(self.key_end)).strip()
        attributes = (yield from source.until(self.value_open)) if self.value_open else ""
        found.arguments(f'{separator}"{escaped(key)}": ')
        wanted = types_of(schema, key)
        if 'string="true"' in attributes:
            wanted = frozenset({"string"})
        elif 'string="false"' in attributes:
            wanted -= {"string"}
        own_line = yield from source.take("\n")
        ends = (f"\n{self.value_end}", self.value_end) if own_line else (self.value_end,)
        if wanted == {"string"}:
            found.arguments('"')
            if (yield from source.flow(ends, lambda text: found.arguments(escaped(text)))):
                found.arguments('"')
            return
        parts: list[str] = []
        complete = yield from source.flow(ends, parts.append)
        value = "".join(parts)
        if complete:
            found.arguments(json_of(value, wanted))
        else:
            found.content(value)

    def grammar(self, lark: Lark, functions: Mapping[str, Any], *, several: bool, opened: bool) -> str:
        one = "(" + " | ".join(self._written(lark, name, schema) for name, schema in functions.items()) + ")"
        call = f"{lark.text(self.call_open)} {one}"
        more = f" ({LINE} {call})*" if several else ""
        if not self.section_open:
            return (one if opened else call) + more
        inside = f"{LINE} {call}{more} {LINE} {lark.text(self.section_end)}"
        section = f"{lark.text(self.section_open)} {inside}"
        return (inside if opened else section) + (f" ({LINE} {section})*" if several else "")

    def _written(self, lark: Lark, name: str, schema: Any) -> str:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        required = schema.get("required", ()) if isinstance(schema, Mapping) else ()
        items = [(self._element(lark, key, each, schema), key in required) for key, each in (properties or {}).items()]
        return f"({lark.text(name + self.after_name)} {LINE} {lark.sequence(items, LINE)} {LINE} {lark.text(self.call_end)})"

    def _element(self, lark: Lark, key: str, schema: Any, root: Any) -> str:
        is_text = types_of(root, key) == {"string"}
        attribute = f' string="{"true" if is_text else "false"}"' if self.typed else ""
        line = "\n" if self.own_line else ""
        between = f"{lark.text(self.key_end)} {LINE} {lark.text(self.value_open)}" if self.key_end.startswith("<") else ""
        opening = (
            f"{lark.text(self.key_open + key)} {between}"
            if between
            else lark.text(self.key_open + key + self.key_end + attribute + self.value_open)
        )
        end = line + self.value_end
        if not is_text:
            value = f"{lark.json(schema, root)} {lark.text(end)}"
        elif isinstance(choices := schema.get("enum"), list) and choices:
            value = "(" + " | ".join(lark.text(str(choice)) for choice in choices) + f") {lark.text(end)}"
        else:
            value = lark.free(end)
        return f"({opening} {lark.text(line) + ' ' if line else ''}{value})"
