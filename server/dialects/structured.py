"""Structured output: the fields that ask for it, in the words of OpenAI, vLLM and llama.cpp, and the grammar that they mean."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...errors import RequestError

MAX_GRAMMAR_CHARACTERS = 256 * 1024
MAX_CHOICES_OF_TEXT = 10_000
WHITESPACE = r"[ ]?|\r?\n[ \t]{0,64}"
"""Between the parts of JSON: one space at most, or a new line and its indentation. A model that may write any number of spaces does."""

Schema = dict[str, Any] | bool | str
"""A JSON schema, or its text."""
Choices = Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES_OF_TEXT)]


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """strict: the schema holds in any case."""

    schema: Schema | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class StructuralTag(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Text that follows `schema` between `begin` and `end`."""

    begin: str
    end: str
    schema: Schema = True


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """schema: of json_object, as llama.cpp has it. structures, triggers: of structural_tag, as vLLM has it."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    schema: Schema | None = None
    structures: list[StructuralTag] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One of json, regex, choice, grammar, json_object and structural_tag. grammar: in Lark, or GBNF as llama.cpp has it.

    disable_any_whitespace: JSON is written without any. whitespace_pattern: a regular expression of what may stand between its parts.
    """

    json: Schema | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | ResponseFormat | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None


class Wanted(msgspec.Struct, frozen=True):
    """What an answer must be. field: the one that asks for it, which errors name."""

    field: str
    kind: Literal["json", "regex", "choice", "grammar", "tags"]
    value: Any
    whitespace: str = WHITESPACE


class StructuredRequest(msgspec.Struct, kw_only=True):
    """The fields that ask for structured output."""

    response_format: ResponseFormat | None = None
    """As OpenAI, llama.cpp and vLLM have it: `json_schema`, `json_object`, `structural_tag`, or `text`."""
    structured_outputs: StructuredOutputs | None = None
    """As vLLM has it."""
    guided_json: Schema | None = None
    """As older clients of vLLM write it."""
    guided_regex: str | None = None
    """The same."""
    guided_choice: Choices | None = None
    """The same."""
    guided_grammar: str | None = None
    """The same."""
    guided_whitespace_pattern: str | None = None
    """What may stand between the parts of JSON."""
    guided_decoding_backend: str | None = None
    """Ignored: there is one."""
    grammar: str | None = None
    """As llama.cpp's clients write it."""
    json_schema: Schema | None = None
    """The same."""

    def wanted(self) -> Wanted | None:
        """What the answer must be, None for no rules. Raises RequestError for two at once, and for what is incomplete."""
        found = [*_of_format(self.response_format), *_of_outputs(self.structured_outputs)]
        older = self.guided_whitespace_pattern or WHITESPACE
        if self.guided_json is not None:
            found.append(Wanted("guided_json", "json", self.guided_json, older))
        if self.guided_regex is not None:
            found.append(Wanted("guided_regex", "regex", self.guided_regex))
        if self.guided_choice is not None:
            found.append(Wanted("guided_choice", "choice", self.guided_choice))
        if self.guided_grammar is not None:
            found.append(Wanted("guided_grammar", "grammar", self.guided_grammar))
        if self.grammar is not None:
            found.append(Wanted("grammar", "grammar", self.grammar))
        if self.json_schema is not None:
            found.append(Wanted("json_schema", "json", self.json_schema))
        if len(found) > 1:
            raise RequestError(
                f"{found[0].field} and {found[1].field} both say what the answer must be", param=found[1].field, hint="leave one out"
            )
        return found[0] if found else None


def _of_format(format: ResponseFormat | None) -> Iterator[Wanted]:
    match format:
        case None | ResponseFormat(type="text"):
            return
        case ResponseFormat(type="json_object"):
            yield Wanted("response_format", "json", {"type": "object"} if format.schema is None else format.schema)
        case ResponseFormat(type="json_schema"):
            given = format.schema if format.json_schema is None else format.json_schema.schema
            if given is None:
                raise RequestError(
                    "response_format has no schema",
                    param="response_format.json_schema",
                    code="missing_field",
                    hint='write {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
                )
            yield Wanted("response_format.json_schema.schema", "json", given)
        case _:
            yield _tags(format, "response_format")


def _tags(format: ResponseFormat, field: str) -> Wanted:
    if not format.structures or not format.triggers:
        raise RequestError(
            f"{field} needs structures and triggers", param=field, code="missing_field", hint="a structure has begin, schema and end"
        )
    for structure in format.structures:
        if not any(trigger and structure.begin.startswith(trigger) for trigger in format.triggers):
            raise RequestError(
                f"no trigger begins {structure.begin!r}", param=f"{field}.triggers", hint="each structure's begin starts with a trigger"
            )
    return Wanted(field, "tags", format)


def _of_outputs(outputs: StructuredOutputs | None) -> Iterator[Wanted]:
    if outputs is None:
        return
    whitespace = "" if outputs.disable_any_whitespace else outputs.whitespace_pattern or WHITESPACE
    if outputs.json is not None:
        yield Wanted("structured_outputs.json", "json", outputs.json, whitespace)
    if outputs.json_object:
        yield Wanted("structured_outputs.json_object", "json", {"type": "object"}, whitespace)
    if outputs.regex is not None:
        yield Wanted("structured_outputs.regex", "regex", outputs.regex)
    if outputs.choice is not None:
        yield Wanted("structured_outputs.choice", "choice", outputs.choice)
    if outputs.grammar is not None:
        yield Wanted("structured_outputs.grammar", "grammar", outputs.grammar)
    match outputs.structural_tag:
        case str() as text:
            yield _tags(_decoded_tags(text), "structured_outputs.structural_tag")
        case ResponseFormat() as format:
            yield _tags(format, "structured_outputs.structural_tag")


def _decoded_tags(text: str) -> ResponseFormat:
    try:
        return msgspec.json.decode(text, type=ResponseFormat)
    except msgspec.DecodeError as error:
        raise RequestError(
            f"structured_outputs.structural_tag: {error}",
            param="structured_outputs.structural_tag",
            code="invalid_value",
            hint='it is JSON of {"type": "structural_tag", "structures": [...], "triggers": [...]}',
        ) from None
