"""From a body of JSON to a request, held to the rules of its fields: errors name the field at fault, or the place in the text."""

import re
from typing import Any, TypeVar

import msgspec

from ...errors import RequestError

_REQUEST = TypeVar("_REQUEST", bound=msgspec.Struct)
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_KEY = re.compile(r" - at `key` in `\$\.(\w+)`$")
_INTEGER = re.compile(r"-?\d+")
_FIELD = re.compile(r"(?:unknown|missing required) field `([^`]*)`")
_BYTE = re.compile(r"\(byte (\d+)\)$")


def decode_request(body: bytes, kind: type[_REQUEST]) -> _REQUEST:
    """Raises RequestError naming the field at fault, or the place where the JSON is malformed."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        return _read_again(body, kind, str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(
            f"the body is not valid JSON: {_with_position(str(error), body)}", code="invalid_json", hint="JSON is UTF-8 text"
        ) from None


def _read_again(body: bytes, kind: type[_REQUEST], message: str) -> _REQUEST:
    """The same, where null is nothing and 3.0 is 3: so some clients write. Raises what was found wrong at first otherwise."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):  # malformed behind what was wrong
        raise _refusal(message) from None
    if not isinstance(fields, dict):
        raise _refusal(message)
    plain = {name: _as_integer(value) for name, value in fields.items() if value is not None or name in kind.__struct_fields__}
    try:
        return msgspec.convert(plain, type=kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), plain) from None


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def checked(value: _REQUEST, kind: type[_REQUEST]) -> _REQUEST:
    """A request made in Python, held to the same rules as one that came as JSON. Raises RequestError."""
    try:
        return msgspec.convert(msgspec.structs.asdict(value), type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None


def _refusal(message: str, fields: dict[str, Any] | None = None) -> RequestError:
    """fields: of the request, as far as they are known."""
    if (key := _KEY.search(message)) and fields is not None and isinstance(given := fields.get(key[1]), dict):
        wrong = [name for name in given if not _INTEGER.fullmatch(name)]
        text = f"{key[1]} has the keys {', '.join(map(repr, wrong))}, which are no numbers" if wrong else _KEY.sub("", message)
        return RequestError(text, param=key[1], code="invalid_value", hint="its keys are token ids, which POST /tokenize tells")
    path = match[1] if (match := _PATH.search(message)) else ""
    reason = _PATH.sub("", message)
    if field := _FIELD.search(reason):
        param = f"{path}.{field[1]}" if path else field[1]
        unknown = "unknown" in reason
        text = f"unknown field {param!r}" if unknown else f"the field {param!r} is required"
        hint = "leave it out; docs/api.md lists what a request may have" if unknown else "docs/api.md lists what a request must have"
        return RequestError(text, param=param, code="unknown_field" if unknown else "missing_field", hint=hint)
    param = path.removesuffix("[...]") or None
    return RequestError(
        f"{param}: {reason}" if param else reason, param=param, code="invalid_value", hint="docs/api.md says what it may be"
    )


def _with_position(message: str, body: bytes) -> str:
    position = int(match[1]) if (match := _BYTE.search(message)) else len(body)
    before = body[:position]
    line, column = before.count(b"\n") + 1, position - (before.rfind(b"\n") + 1) + 1
    return f"{_BYTE.sub('', message).strip()} (line {line}, column {column})"
