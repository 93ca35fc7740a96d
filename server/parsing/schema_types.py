"""Values that a model writes as plain text or as Python, as the JSON that a function's schema wants."""

import ast
import json
from collections.abc import Mapping
from typing import Any

_JSON_TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


def types_of(parameters: Any, name: str) -> frozenset[str]:
    """The JSON types that the parameter may have, as far as its schema says; none if it says nothing."""
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return _types(properties.get(name)) if isinstance(properties, Mapping) else frozenset()


def _types(schema: Any) -> frozenset[str]:
    if not isinstance(schema, Mapping):
        return frozenset()
    match schema.get("type"):
        case str(kind):
            return frozenset({kind})
        case list(kinds):
            return frozenset(kind for kind in kinds if isinstance(kind, str))
    for name in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(name), list):
            return frozenset().union(*map(_types, choices))
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return frozenset(_JSON_TYPES.get(type(value), "object") for value in values) if isinstance(values, list) else frozenset()


def json_of(text: str, types: frozenset[str]) -> str:
    """JSON for a value that was written without quotes. What fits no other type is a string."""
    must_be_other = bool(types) and "string" not in types
    if types != {"string"}:
        for read in (json.loads, ast.literal_eval) if must_be_other else (json.loads,):
            try:
                value = read(text.strip())
                written = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except _UNREADABLE:
                continue
            kind = _JSON_TYPES.get(type(value), "array")
            if must_be_other or (kind != "string" and (not types or kind in types or (kind == "integer" and "number" in types))):
                return written
    return json.dumps(text, ensure_ascii=False)


def json_of_literal(text: str) -> str:
    """JSON for a value that was written in Python, or as JSON."""
    for read in (json.loads, ast.literal_eval):
        try:
            return json.dumps(read(text.strip()), ensure_ascii=False, allow_nan=False)
        except _UNREADABLE:
            continue
    return json.dumps(text.strip(), ensure_ascii=False)
