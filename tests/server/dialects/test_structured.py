"""What asks for structured output, and what is said of that which cannot be honoured."""

import json
from typing import Any

import pytest

from engine.errors import RequestError
from engine.server.dialects.decoding import decode_request
from engine.server.dialects.grammars import grammar_of
from engine.server.dialects.schemas import ChatRequest, CompletionRequest
from engine.server.dialects.structured import MAX_GRAMMAR_CHARACTERS, WHITESPACE, Wanted

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TAGS = {
    "type": "structural_tag",
    "structures": [{"begin": "<function=f>", "schema": SCHEMA, "end": "</function>"}],
    "triggers": ["<function="],
}


def chat(**fields: Any) -> ChatRequest:
    return decode_request(json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}).encode(), ChatRequest)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "guided_json": None}, None),
        ({"structured_outputs": {}}, None),
        ({"response_format": {"type": "json_object"}}, Wanted("response_format", "json", {"type": "object"})),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Wanted("response_format", "json", SCHEMA)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
            Wanted("response_format.json_schema.schema", "json", SCHEMA),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Wanted("structured_outputs.json", "json", SCHEMA)),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, Wanted("structured_outputs.json", "json", SCHEMA, "")),
        ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}}, Wanted("structured_outputs.json", "json", SCHEMA, " ?")),
        ({"structured_outputs": {"json_object": True}}, Wanted("structured_outputs.json_object", "json", {"type": "object"})),
        ({"structured_outputs": {"regex": "a+"}}, Wanted("structured_outputs.regex", "regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Wanted("structured_outputs.choice", "choice", ["a", "b"])),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Wanted("structured_outputs.grammar", "grammar", 'root ::= "a"')),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": ""}, Wanted("guided_json", "json", SCHEMA, WHITESPACE)),
        ({"guided_regex": "a"}, Wanted("guided_regex", "regex", "a")),
        ({"guided_choice": ["a"], "guided_decoding_backend": "any"}, Wanted("guided_choice", "choice", ["a"])),
        ({"guided_grammar": 'start: "a"'}, Wanted("guided_grammar", "grammar", 'start: "a"')),
        ({"grammar": 'root ::= "a"'}, Wanted("grammar", "grammar", 'root ::= "a"')),
        ({"json_schema": SCHEMA}, Wanted("json_schema", "json", SCHEMA)),
    ],
)
def test_every_way_to_ask(fields: dict[str, Any], wanted: Wanted | None) -> None:
    found = chat(**fields).wanted()
    assert found == wanted
    if found is not None:
        grammar_of(found)
    assert decode_request(json.dumps({"prompt": "x", **fields}).encode(), CompletionRequest).wanted() == wanted


@pytest.mark.parametrize("tags", [TAGS, json.dumps(TAGS)])
def test_structural_tags(tags: Any) -> None:
    found = chat(structured_outputs={"structural_tag": tags}).wanted()
    assert found is not None
    assert (found.field, found.kind) == ("structured_outputs.structural_tag", "tags")
    assert "<function=" in grammar_of(found)
    assert chat(response_format=TAGS).wanted() == Wanted("response_format", "tags", found.value)


@pytest.mark.parametrize(
    ("schema", "path", "reason"),
    [
        ({"not": {}}, "#:", "not"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": {"uniqueItems": True}}}},
            "#/properties/a/items:",
            "uniqueItems",
        ),
        ({"anyOf": [{"type": "string"}, {"type": "string", "pattern": "(?=x)"}]}, "#/anyOf/1:", "look-ahead"),
        ({"$defs": {"d": {"if": {}}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/d"}}}, "#/properties/a:", "if"),
        ({"type": "object", "properties": {"a/b~c": {"not": {}}}}, "#/properties/a~1b~0c:", "not"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/schema"}}}, "#/properties/a:", "example.com"),
        ({"properties": {"a": {"type": "strang"}}}, "#/properties/a:", "strang"),
        ({"type": "string", "format": "no-such-format"}, "#:", "no-such-format"),
        ({"oneOf": [{"type": "string"}, {"minLength": 1}]}, "#:", "oneOf"),
    ],
)
def test_what_a_schema_has_and_cannot_be_honoured_is_named_with_its_path(schema: dict[str, Any], path: str, reason: str) -> None:
    wanted = chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}).wanted()
    assert wanted is not None
    with pytest.raises(RequestError) as refused:
        grammar_of(wanted)
    assert f"cannot be honoured at {path}" in refused.value.message
    assert reason in refused.value.message
    assert (refused.value.status, refused.value.code) == (400, "unsupported_schema")
    assert refused.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        ({"response_format": {**TAGS, "triggers": ["<other"]}}, "response_format.triggers"),
        ({"structured_outputs": {"structural_tag": "{"}}, "structured_outputs.structural_tag"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": False}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"guided_json": {"enum": ["x" * MAX_GRAMMAR_CHARACTERS]}}, "guided_json"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    request = chat(**fields)
    with pytest.raises(RequestError) as refused:
        grammar_of(request.wanted() or Wanted("nothing", "json", {}))
    assert refused.value.param == param
    assert refused.value.hint


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_object", "other": 1}},
        {"structured_outputs": {"jsn": {}}},
        {"guided_choice": []},
    ],
)
def test_unknown_words_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        chat(**fields)


def test_choices_are_texts_whatever_is_in_them() -> None:
    from llguidance import LLMatcher

    choices = ['say "no"', "back\\slash", "new\nline", "é🎉", "a|b"]
    grammar = grammar_of(Wanted("guided_choice", "choice", choices))
    assert LLMatcher.validate_grammar(grammar) == ""


def test_nothing_counts_beside_a_reference_in_old_drafts() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"list": {"type": "array"}},
        "properties": {"a": {"$ref": "#/definitions/list", "uniqueItems": True}},
    }
    grammar_of(Wanted("guided_json", "json", schema))
    with pytest.raises(RequestError, match="uniqueItems"):
        grammar_of(Wanted("guided_json", "json", schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"}))
