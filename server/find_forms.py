"""Loads a tokenizer as serving would, and finds in its chat template how the model writes tool calls and reasoning.

    python -m engine.server.find_forms DIR

Reads DIR/tokenizer and writes AnswerForms as JSON. This is how a build finds out what only a start of the server
would show otherwise, without compiler and server ever meeting.
"""

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from ..artifacts import AnswerForms
from ..errors import EngineError, RequestError
from .parsing.findings import Findings
from .parsing.forms.form import CallForm
from .parsing.pieces import Message, call_ids
from .parsing.reader import Reader
from .parsing.table import REASONING_FORMS, TOOL_FORMS
from .text.chat_template import ChatTemplate
from .text.text import Text

_USER = {"role": "user", "content": "How is the weather in Rio?"}
_ARGUMENTS = {"city": "Rio", "days": 3}
_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]}
_TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": _PARAMETERS}}
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(_ARGUMENTS)}}
_ANSWER = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "sunny"}
_ONLY_IF = {"deepseek_r1": None, "hunyuan": "<answer>"}
"""What a template must have besides for a form of reasoning that shares its marks with another; None: it cannot be told."""


def find_forms(template: ChatTemplate | None, tokens: Collection[str] = ()) -> AnswerForms:
    """By the call that the template writes into a conversation; where it writes none, by the marks that it has or that are `tokens`."""
    if template is None:
        return AnswerForms()
    return AnswerForms(tools=_tools(template, tokens) if template.reads_tools else None, reasoning=_reasoning(template.source))


def _tools(template: ChatTemplate, tokens: Collection[str]) -> str | None:
    """The form that reads the call and leaves the least of the answer over."""
    try:
        asked = template.render([_USER], add_generation_prompt=False, tools=[_TOOL])
        opened = template.render([_USER], add_generation_prompt=True, tools=[_TOOL])
        whole = template.render([_USER, _ANSWER, _RESULT], add_generation_prompt=False, tools=[_TOOL])
    except RequestError:
        return _by_marks(template.source, tokens)
    answers = {_behind(before, whole) for before in (asked, opened)}
    left = {name: over for name in TOOL_FORMS for answer in sorted(answers) if (over := _left_over(name, answer)) is not None}
    return min(left, key=lambda name: left[name]) if left else _by_marks(opened + template.source, tokens)


def _behind(before: str, whole: str) -> str:
    """`whole` without what it begins with as `before` does."""
    same = next((place for place, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole)))
    return whole[same:]


def _left_over(form: str, answer: str) -> int | None:
    """How much of the answer is no call, None if the call in it is not found."""
    reader = Reader(TOOL_FORMS[form], Findings(call_ids(""), {"get_weather": _PARAMETERS}, None))
    message = Message.of([*reader.push(answer), *reader.end()])
    calls = [(call.name, _parsed(call.arguments)) for call in message.calls]
    return len(message.content) if calls == [("get_weather", _ARGUMENTS)] else None


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return None


def _by_marks(text: str, tokens: Collection[str]) -> str | None:
    """The form of which all marks are there; of several the one with most."""
    marks = {name: {mark for form in forms if isinstance(form, CallForm) for mark in form.markers} for name, forms in TOOL_FORMS.items()}
    there = {
        name: len(found)
        for name, found in marks.items()
        if found and "{" not in found and all(mark in text or mark in tokens for mark in found)
    }
    return max(there, key=lambda name: there[name]) if there else None


def _reasoning(source: str) -> str | None:
    for name, forms in sorted(REASONING_FORMS.items(), key=lambda row: row[0] not in _ONLY_IF):
        needed = _ONLY_IF.get(name, "")
        ends = getattr(forms[0], "ends", ("<|channel|>analysis",))
        if needed is not None and needed in source and ends[0] in source:
            return name
    return None


def main() -> int:
    try:
        text = Text.load(Path(sys.argv[1]) / "tokenizer")
        text.decode(text.encode("Hello"))
        sys.stdout.buffer.write(msgspec.json.encode(find_forms(text.template, text.added_tokens())))
    except EngineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
