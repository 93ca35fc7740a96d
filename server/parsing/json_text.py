"""JSON text as it comes: values are passed on as they are written, and only their extent is found."""

import json
import re
from typing import Any

from .source import Emit, NotACall, Scan, Source

_STRING_RUN = re.compile(r'[^"\\]+')
_VALUE_RUN = re.compile(r'[^"{}\[\],;\s]+')


def string(source: Source, emit: Emit) -> Scan[None]:
    """A string with its quotes, up to the end of the text if it is cut off. Raises NotACall if none comes next."""
    if (yield from source.peek()) != '"':
        raise NotACall
    emit(source.skip(1))
    while char := (yield from source.peek()):
        if char == '"':
            emit(source.skip(1))
            return
        if char == "\\":
            while len(source.text) - source.at < 2 and not source.ended:
                yield
            emit(source.skip(2))
        elif match := _STRING_RUN.match(source.text, source.at):
            emit(source.skip(len(match[0])))


def value(source: Source, emit: Emit, stop: str = "") -> Scan[None]:
    """Any value, up to the end of the text if it is cut off, and up to `stop` outside of its strings if it lacks its end."""
    depth = 0
    while char := (yield from source.peek()):
        if char == '"':
            yield from string(source, emit)
        elif char in "{[":
            depth += 1
            emit(source.skip(1))
        elif char in "}]":
            if depth == 0:
                return
            depth -= 1
            emit(source.skip(1))
        elif (depth == 0 and (char in ",;" or char.isspace())) or (stop and char == stop[0] and (yield from source.starts(stop))):
            return
        elif match := _VALUE_RUN.match(source.text, source.at):
            end = match[0].find(stop[0], 1) if stop else -1
            emit(source.skip(end if end > 0 else len(match[0])))
            if depth == 0:
                continue  # a number may go on
        else:
            emit(source.skip(1))
        if depth == 0:
            return


def whole(source: Source) -> Scan[Any]:
    """A value, decoded. Raises NotACall if it is none."""
    parts: list[str] = []
    yield from value(source, parts.append)
    try:
        return json.loads("".join(parts))
    except (ValueError, RecursionError):
        raise NotACall from None


def whole_string(source: Source) -> Scan[str]:
    """A string, decoded. Raises NotACall if it is none."""
    if (yield from source.peek()) != '"':
        raise NotACall
    text: str = yield from whole(source)
    return text


def escaped(text: str) -> str:
    """As the inside of a JSON string. Parts may be escaped one by one."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
