"""What only looks like special tokens: their text in messages, by which whoever writes one could open a turn of the system's."""

import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

_CUT = f"\ue000{secrets.token_hex(8)}\ue001"
"""Stands where a text is to be cut, through the chat template; nobody can guess it."""


class PlainContent:
    """Marks texts of special tokens where they stand in messages, so that a rendered conversation can be cut inside of each.

    Tokenized part by part, none of them becomes the special token, and all else becomes what it would have been.
    """

    def __init__(self, special: Collection[str]) -> None:
        self._special = frozenset(text for text in special if len(text) > 1)
        self._sizes = sorted({len(text) for text in self._special}, reverse=True)
        firsts = "".join(sorted({text[0] for text in self._special}))
        self._candidate = re.compile(f"[{re.escape(firsts)}]") if firsts else None

    def marked(self, value: Any) -> Any:
        """A message, or a part of one, with a mark inside of each."""
        match value:
            case str():
                return self._marked(value)
            case Mapping():
                return {name: self.marked(each) for name, each in value.items()}
            case list():
                marked = [self.marked(each) for each in value]
                return [_closed(part) for part in marked] if len(marked) > 1 and self._in_joined(value) else marked
        return value

    def _marked(self, text: str) -> str:
        if self._candidate is None:
            return text
        parts, done = [], 0
        for match in self._candidate.finditer(text):
            start = match.start()
            size = next((size for size in self._sizes if text[start : start + size] in self._special), 0)
            if size and start >= done:
                middle = start + size // 2
                parts.append(text[done:middle])
                done = middle
        return _CUT.join([*parts, text[done:]])

    def _in_joined(self, parts: list[Any]) -> bool:
        """Whether text parts make a special token together."""
        text = "".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))
        return self._marked(text) != text


def _closed(part: Any) -> Any:
    return {**part, "text": part["text"] + _CUT} if isinstance(part, Mapping) and isinstance(part.get("text"), str) else part


def cut(rendered: str) -> list[str]:
    """The parts of a rendered conversation; joined they are what the model reads."""
    return [part for part in rendered.split(_CUT) if part] or [""]
