"""From what an answer must be to a grammar that the worker's llguidance reads, checked before the worker sees it.

llguidance is imported by the first request that needs it. A check takes less than a millisecond, a few hundred
for the largest schemas, and lets other threads run: it belongs beside the event loop.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from .structured import MAX_GRAMMAR_CHARACTERS, WHITESPACE, ResponseFormat, Schema, Wanted
from .tools import ToolUse

if TYPE_CHECKING:
    from ..parsing.parsing import FormsParsing

_MOST_CHECKS = 2_000
"""Of parts of a schema, to find the one at fault."""
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_NO_RULES = frozenset({"$schema", "$id", "definitions", "$defs"})
_OLD_DRAFT = re.compile(r"draft-0[3-7]")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def grammar_of(wanted: Wanted) -> str:
    """Raises RequestError, with the path of what a schema has and cannot be honoured."""
    from llguidance import LLMatcher, grammar_from

    match wanted.kind:
        case "json":
            return json_grammar(wanted.value, wanted.field, whitespace=wanted.whitespace)
        case "regex":
            return checked_grammar(LLMatcher.grammar_from_regex(wanted.value), wanted.field)
        case "choice":
            choices = " | ".join(literal(choice) for choice in wanted.value)
            return checked_grammar(LLMatcher.grammar_from_lark(f"start: {choices}"), wanted.field)
        case "tags":
            return checked_grammar(_tags_grammar(wanted.value), wanted.field)
        case "grammar":
            try:
                return checked_grammar(grammar_from("grammar", wanted.value), wanted.field)
            except ValueError as error:
                raise _unusable(wanted.field, str(error)) from None


def json_grammar(schema: Schema, field: str, *, whitespace: str) -> str:
    """whitespace: a regular expression of what may stand between the parts of JSON; none at all if it is empty."""
    from llguidance import LLMatcher

    parsed = _parsed(schema, field)
    style: Any = {"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}
    grammar = LLMatcher.grammar_from_json_schema(parsed, defaults=style)
    _check_size(grammar, field)
    if reason := _fault(grammar):
        path, reason = _culprit(parsed, reason)
        raise RequestError(
            f"{field} cannot be honoured at {path}: {reason}",
            param=field,
            code="unsupported_schema",
            hint="docs/api.md lists the keywords that can be used",
        )
    return grammar


def checked_grammar(grammar: str, field: str) -> str:
    """The same. Raises RequestError naming the field if no answer can be made to follow it."""
    _check_size(grammar, field)
    if reason := _fault(grammar):
        raise _unusable(field, reason)
    return grammar


def chat_grammar(
    answer: str | None,
    use: ToolUse,
    parsing: "FormsParsing | None",
    added: Mapping[str, int],
    *,
    thinking_budget: int | None = None,
    must_bound: bool = True,
) -> str | None:
    """What the assistant's message must follow: `answer` if it has content, and what the request says about calls; None for no rules.

    added: texts and ids of the tokenizer's added tokens.
    thinking_budget: tokens of reasoning, after which it is ended. must_bound: whether one that cannot be kept is refused, or left out.
    Raises RequestError for what cannot be honoured: a budget, or schemas of functions that must be followed.
    """
    if thinking_budget is not None and (parsing is None or not parsing.is_bounded(added)):
        if must_bound:
            raise RequestError(
                "thinking_token_budget needs a model that ends its reasoning with a token of its own",
                param="thinking_token_budget",
                code="unsupported_parameter",
                hint="leave it out; max_tokens bounds reasoning and answer together",
            )
        thinking_budget = None
    if parsing is None:
        return answer
    if use.must_call or use.strict:
        for index, name in use.checked:
            json_grammar(use.schemas[name], f"tools[{index}].function.parameters", whitespace=WHITESPACE)
    asked = {"must_call": use.must_call, "strict": use.strict, "answer": answer is not None}
    markers = {text: id for text, id in added.items() if text in parsing.markers}
    lark = parsing.grammar(markers, WHITESPACE, **asked, budget=thinking_budget)
    if lark is None:
        return answer
    from llguidance import LLMatcher

    if answer is None or use.must_call:
        return checked_grammar(LLMatcher.grammar_from_lark(lark), "tools")
    first, *rest = json.loads(answer)["grammars"] if answer.startswith("{") else [{"lark_grammar": answer}]
    return checked_grammar(json.dumps({"grammars": [{"lark_grammar": lark}, {**first, "name": "answer"}, *rest]}), "response_format")


def literal(text: str) -> str:
    """A text in a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def _unusable(field: str, reason: str) -> RequestError:
    return RequestError(f"{field}: {reason}", param=field, code="invalid_grammar", hint="docs/api.md says what may be written here")


def _check_size(grammar: str, field: str) -> None:
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise RequestError(
            f"{field} has {len(grammar)} characters, and no more than {MAX_GRAMMAR_CHARACTERS} may be",
            param=field,
            code="grammar_too_large",
            hint="say less about the answer",
        )


def _fault(grammar: str) -> str:
    """Why a grammar cannot be used, in one line; empty if it can."""
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(" ".join(messages).split()) if is_error else ""


def _parsed(schema: Schema, field: str) -> dict[str, Any]:
    found: Any = schema
    if isinstance(schema, str):
        try:
            found = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{field} is not valid JSON: {error}", param=field, code="invalid_value", hint="give a schema") from None
    match found:
        case True:
            return {}
        case dict():
            return _alone(found) if _OLD_DRAFT.search(str(found.get("$schema", ""))) else found
    raise RequestError(
        f"{field} must be a JSON schema that something satisfies, not {json.dumps(found)[:40]}", param=field, hint="give an object"
    )


def _alone(value: Any) -> Any:
    """A schema of the drafts in which nothing counts beside a reference, in words of those in which it would."""
    match value:
        case {"$ref": str(), **beside}:
            return {key: _alone(part) for key, part in value.items() if key == "$ref" or key in beside.keys() & _NO_RULES}
        case dict():
            return {key: _alone(part) for key, part in value.items()}
        case list():
            return [_alone(part) for part in value]
    return value


def _tags_grammar(format: ResponseFormat) -> str:
    """Free text, in which a trigger begins a structure: its begin, its schema, its end."""
    from llguidance import LLMatcher, StructTag

    tags = []
    for index, structure in enumerate(format.structures or ()):
        trigger = next(trigger for trigger in format.triggers or () if trigger and structure.begin.startswith(trigger))
        schema = _parsed(structure.schema, f"structures[{index}].schema")
        json_grammar(schema, f"structures[{index}].schema", whitespace=" ")
        tags.append(StructTag(trigger=trigger, begin=structure.begin, grammar=schema, end=structure.end))
    return LLMatcher.grammar_from_lark(StructTag.to_grammar(tags, assume_special=False))


def _culprit(schema: dict[str, Any], reason: str) -> tuple[str, str]:
    """The innermost part that cannot be honoured by itself: its path, and why."""
    shared: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    path, found, left = "#", schema, _MOST_CHECKS
    while True:
        for step, part in _parts(found):
            if not isinstance(part, dict):
                continue
            left -= 1
            if left < 0:
                return path, reason
            if fault := _fault(_plain_grammar({**shared, **part})):
                path, found, reason = f"{path}/{step}", part, fault
                break
        else:
            return path, reason


def _plain_grammar(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(schema)


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is inside of a schema, each with its step of a JSON pointer."""
    for name in _MAPS:
        inner = schema.get(name)
        for key, part in inner.items() if isinstance(inner, dict) else ():
            yield f"{name}/{str(key).replace('~', '~0').replace('/', '~1')}", part
    for name in _LISTS:
        inner = schema.get(name)
        for index, part in enumerate(inner if isinstance(inner, list) else ()):
            yield f"{name}/{index}", part
    for name in _SINGLES:
        if name in schema:
            yield name, schema[name]
