"""Keys by construction: what a compiled thing is made from, as a frozen dataclass, to its identity.

Every field is an ingredient, at any depth, unless the field itself says otherwise (NOT_IN_KEY);
a value of a kind that is not known here is an error. So an ingredient cannot be forgotten, and
no path, object or time can slip in.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any

NOT_IN_KEY: Mapping[str, Any] = MappingProxyType({"in_key": False})
"""As a field's metadata: what it holds decides nothing that is stored."""
KEY_DIGITS = 32
_LONGEST = 72
_DIGEST = "sha256:"
_DIGEST_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A key, and for people what it was made of: short values as they are, long ones as digests (see `compact`)."""

    kind: str
    key: str
    ingredients: dict[str, str]


def identity(kind: str, recipe: Any) -> Identity:
    """The identity of what `recipe`, a frozen dataclass, leads to. Raises TypeError for a field that cannot be an ingredient."""
    values = flatten(recipe)
    digest = hashlib.sha256(json.dumps([kind, sorted(values.items())]).encode())
    return Identity(kind=kind, key=digest.hexdigest()[:KEY_DIGITS], ingredients=compact(values))


def digest_of(content: bytes) -> str:
    """How long values and files appear among ingredients."""
    return _DIGEST + hashlib.sha256(content).hexdigest()


def flatten(recipe: Any) -> dict[str, str]:
    """Every ingredient by its dotted name, each value as JSON; a dataclass inside adds its type's name."""
    values: dict[str, str] = {}
    for name, value in _ingredients("", recipe):
        if values.setdefault(name, value) != value:
            raise TypeError(f"two ingredients are called {name}")
    return values


def _ingredients(name: str, value: Any) -> Iterator[tuple[str, str]]:
    within = f"{name}." if name else ""
    if is_dataclass(value) and not isinstance(value, type):
        if name:
            yield name, json.dumps(type(value).__name__)
        for field in fields(value):
            if field.metadata.get("in_key", True):
                yield from _ingredients(within + field.name, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _ingredients(within + key, value[key])
    elif isinstance(value, tuple) and any(is_dataclass(item) for item in value):
        for index, item in enumerate(value):
            yield from _ingredients(f"{within}{index}", item)
    elif all(_is_plain(item) for item in value) if isinstance(value, tuple) else _is_plain(value):
        yield name, json.dumps(value, allow_nan=False)
    else:
        raise TypeError(f"{name} is a {type(value).__name__}, which cannot be an ingredient of a key")


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def compact(values: Mapping[str, str]) -> dict[str, str]:
    """Ingredients for people: names that differ in one number are one, and a long value is its digest.

    `layers.0.window: 0`, `layers.1.window: 0`, `layers.2.window: 7` -> `layers.*.window: 0 at 0-1; 7 at 2`.
    """
    numbered: dict[str, dict[str, list[int]]] = {}
    short: dict[str, str] = {}
    for name, encoded in values.items():
        value = json.loads(encoded)
        text = _shortened(value if isinstance(value, str) else encoded)
        if found := re.search(r"(?<=\.)\d+(?=\.|$)", name):
            pattern = f"{name[: found.start()]}*{name[found.end() :]}"
            numbered.setdefault(pattern, {}).setdefault(text, []).append(int(found[0]))
        else:
            short[name] = text
    joined = {pattern: "; ".join(f"{text} at {_ranges(at)}" for text, at in by_value.items()) for pattern, by_value in numbered.items()}
    return dict(sorted({**short, **{pattern: _shortened(text) for pattern, text in joined.items()}}.items()))


def _shortened(text: str) -> str:
    if text.startswith(_DIGEST):
        return text[: len(_DIGEST) + _DIGEST_DIGITS]
    return text if len(text) <= _LONGEST else digest_of(text.encode())[: len(_DIGEST) + _DIGEST_DIGITS]


def _ranges(numbers: list[int]) -> str:
    """`0-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
