"""How the text of a flag becomes a value, and back. Each raises ArgumentTypeError for what it cannot read."""

import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def text(given: str) -> str:
    """As it is. Arguments that are not UTF-8 arrive with a lone surrogate for each byte that is not (PEP 383)."""
    if not is_text(given):
        raise ArgumentTypeError(f"{given!r} is not UTF-8 text")
    return given


def is_text(given: str) -> bool:
    """Whether it consists of characters alone: a lone surrogate is none."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True


def byte_size(text: str) -> int:
    """`2GiB` and `2G` are 2 * 1024**3, `2GB` is 2 * 1000**3, `4096` is 4096 bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not a size; write 2GiB, 512MB or a number of bytes")
    number, prefix, unit = match.groups()
    base = 1000 if unit and unit.lower() == "b" else 1024
    return int(float(number) * base ** _POWERS[prefix.lower()])


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """`1,8,32`"""
    return tuple(whole_number(part) for part in text.split(","))


def number_range(text: str) -> tuple[int, int]:
    """`32:256`, both included; `64` is `64:64`."""
    low, _, high = text.partition(":")
    first, last = whole_number(low), whole_number(high or low)
    if first > last:
        raise ArgumentTypeError(f"{text!r} ends before it begins")
    return first, last


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def positive_numbers(text: str) -> tuple[float, ...]:
    """`0.5,1,2`"""
    return tuple(positive_number(part) for part in text.split(","))


def days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of days")
    return value


def shape(text: str) -> tuple[int, int]:
    """`4096x11008`: outputs by inputs."""
    outputs, _, inputs = text.partition("x")
    return whole_number(outputs), whole_number(inputs)


def as_typed(value: Any, parse: Any) -> str:
    """A default as one would type it for `parse` to read."""
    if parse is number_range and value[0] == value[1]:
        value = value[:1]
    separator = {number_range: ":", shape: "x"}.get(parse, ",")
    return separator.join(map(_shown, value)) if isinstance(value, tuple) else _shown(value)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# Settings of flags that read alike.
COUNT: dict[str, Any] = {"type": whole_number, "metavar": "N"}
SIZE: dict[str, Any] = {"type": byte_size, "metavar": "SIZE"}
DIRECTORY: dict[str, Any] = {"type": Path, "metavar": "DIR"}
FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
OUTPUT: dict[str, Any] = {"flags": ("-o", "--output"), **DIRECTORY}
