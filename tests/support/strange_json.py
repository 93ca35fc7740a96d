"""JSON that is almost what is wanted: a parsed content with a few places changed, removed or doubled."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]
DEEP, HUGE, LONG = "@deep@", "@huge@", "@long@"
"""Strings that `as_text` writes as what cannot be a value here: a nesting too deep, a number too long, a string too long."""
_TEXTS = {DEEP: "[" * 20_000 + "]" * 20_000, HUGE: "1" * 6_000, LONG: json.dumps("x" * 100_000)}
_STRANGE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**64 + 4, -(2**63), 10**40),
    *(0.0, -0.0, 0.5, 1e308, -1e-320, float("nan"), float("inf")),
    *(
        "",
        "x",
        "..",
        "../outside/secret",
        "/etc/passwd",
        "weights/../../outside/secret",
        "link/secret",
        "a\\b",
        "a\0b",
        "C:/secret",
        "//x/y",
    ),
    *("\ud800", "\u202egnp.exe", "segments/\u2024\u2024/x", "Kernels/none.so", "manifest.json", "kernels", "[/bold]", "[bold]", "\x1b[2J"),
    *(
        "value:0",
        "weight:nothing",
        "input:nothing",
        "cache:full.99.k",
        "sm90",
        "cpu-x86-64-v3",
        "cpu-x86-64-v3+warp",
        "int8",
        "float8",
        "pointer",
    ),
    *([], {}, [[]], [0], [-1], [2**40] * 9, [2**53] * 8, ["x"], {"": None}, DEEP, HUGE, LONG),
]
values = st.sampled_from(_STRANGE) | st.integers() | st.floats() | st.text(max_size=8)


def places(content: Any, at: Path = ()) -> Iterator[Path]:
    """Every place in it, its whole first."""
    yield at
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def found_at(content: Any, place: Path) -> Any:
    for key in place:
        content = content[key]
    return content


@st.composite
def strange(draw: st.DrawFn, original: Any, *, most_changes: int = 3) -> Any:
    content = copy.deepcopy(original)
    for _ in range(draw(st.sampled_from([1, 1, most_changes]))):
        _change(draw, content)
    return content


def _change(draw: st.DrawFn, content: Any) -> None:
    if not content:
        return
    place = draw(st.sampled_from([place for place in places(content) if place]))
    holder: Any = found_at(content, place[:-1])
    key: Any = place[-1]
    match draw(st.sampled_from(["replace", "alike", "alike", "alike", "nudge", "remove", "rename", "double", "swap"])):
        case "alike":
            alike = [value for value in _STRANGE if type(value) is type(holder[key])]
            holder[key] = copy.deepcopy(draw(st.sampled_from(alike))) if alike else None
        case "nudge" if isinstance(holder[key], int):
            holder[key] = holder[key] + draw(st.sampled_from([-1, 1, 64, 1 << 20]))
        case "remove":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[str(draw(values))] = holder.pop(key)
        case "double" if isinstance(holder, list) and isinstance(key, int):
            holder.insert(0, copy.deepcopy(holder[key]))
        case "swap" if isinstance(holder[key], (dict, list)) and holder[key]:
            holder[key] = copy.deepcopy(draw(st.sampled_from(list(holder[key].values() if isinstance(holder[key], dict) else holder[key]))))
        case _:
            holder[key] = copy.deepcopy(draw(values))  # it is changed in its turn


def as_text(content: Any) -> str:
    text = json.dumps(content)
    for word, written in _TEXTS.items():
        text = text.replace(json.dumps(word), written)
    return text
