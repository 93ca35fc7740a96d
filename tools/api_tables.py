"""`make docs`: writes the tables of docs/api.md, from the types of requests and from the errors in the sources.

A table stands between `<!-- NAME: made by make docs -->` and `<!-- end -->`; what is around it is written by hand.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.server.dialects.field_docs import field_docs
from engine.server.dialects.schemas import (
    WITHOUT_EFFECT,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
_SIZES = {"minLength": "not empty", "maxLength": "{} characters at most", "minItems": "{} or more", "maxItems": "{} at most"}
_NAMES = {
    "": "anything",
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "string": "text",
}
_ENDLESS = (-(2**63), 2**63 - 1, 2**31 - 1)
"""Limits that only say how wide a number is."""


def written(page: str) -> str:
    """The page with its tables as they should be. Raises KeyError for a table that is unknown."""
    tables = {name: "\n".join(_table(rows)) for name, rows in _tables().items()}
    return re.sub(
        r"(<!-- ([^\n]+?): made by make docs -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def _tables() -> dict[str, list[tuple[str, ...]]]:
    chat, completions = dict(_fields(ChatRequest)), dict(_fields(CompletionRequest))
    head = ("field", "takes", "")
    ignored = [(f"`{name}`", about) for name, about in WITHOUT_EFFECT.items()]
    return {
        "fields of both": [head, *(row for name, row in chat.items() if completions.get(name) == row)],
        "fields of chats": [head, *(row for name, row in chat.items() if completions.get(name) != row)],
        "fields of completions": [head, *(row for name, row in completions.items() if chat.get(name) != row)],
        "fields of stream_options": [head, *dict(_fields(StreamOptions)).values()],
        "fields of tokenize": [head, *dict(_fields(TokenizeRequest)).values()],
        "fields of detokenize": [head, *dict(_fields(DetokenizeRequest)).values()],
        "ignored fields": [("field", "what it is about elsewhere"), *ignored],
        "refused fields": [("field", "but for"), *_refused()],
        "errors": [("status", "code", "for example"), *_errors()],
    }


def _fields(kind: type[msgspec.Struct]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each field that has an effect, and its row."""
    (_,), components = msgspec.json.schema_components([kind])
    schema, docs = components[kind.__name__], field_docs(kind)
    needed = set(schema.get("required", ()))
    for name, takes in schema["properties"].items():
        if name not in WITHOUT_EFFECT and name not in _unsupported():
            yield name, (f"`{name}`" + (" (needed)" if name in needed else ""), _takes(takes), docs.get(name, ""))


def _takes(schema: dict[str, Any]) -> str:
    if options := schema.get("anyOf"):
        return ", or ".join(dict.fromkeys(_takes(option) for option in options if option.get("type") != "null"))
    if "$ref" in schema:
        return "an object"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    limits = [form.format(f"{schema[key]:,}") for key, form in (_BOUNDS | _SIZES).items() if schema.get(key, 2**63 - 1) not in _ENDLESS]
    named = _NAMES[schema.get("type", "")] + (f" ({', '.join(limits)})" if limits else "")
    return f"{named}: {_takes(schema['items'])}" if schema.get("items") else named


def _unsupported() -> dict[str, tuple[Any, ...]]:
    requests = (ChatRequest(messages=[]), CompletionRequest(prompt=""))
    return {name: harmless for request in requests for name, harmless in request.unsupported().items()}


def _refused() -> Iterator[tuple[str, ...]]:
    for name, harmless in _unsupported().items():
        yield f"`{name}`", ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in (None, *harmless))


def _errors() -> list[tuple[str, ...]]:
    """Status, code and message of every error that the server raises with a code: the first of each that says anything by itself."""
    found: dict[tuple[int, str], str] = {}
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RequestError":
                named = {each.arg: each.value for each in node.keywords}
                match named.get("code"), named.get("status", ast.Constant(400)):
                    case ast.Constant(value=str(code)), ast.Constant(value=int(status)):
                        before = found.get((status, code), "")
                        found[status, code] = before if before.strip("… :") else _message(node.args[0])
    return [(str(status), f"`{code}`", message) for (status, code), message in sorted(found.items())]


def _message(node: ast.expr) -> str:
    """A text in the source, with … for what is put into it."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    for row in (cells[0], ["---"] * len(rows[0]), *cells[1:]):
        yield f"| {' | '.join(row)} |".replace("|  |", "| |")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
