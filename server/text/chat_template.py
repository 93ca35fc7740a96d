"""Messages to prompt, by the Jinja template that came with the model, in a sandbox."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import ArtifactError, RequestError

ROLES = ("system", "developer", "user", "assistant")
_TOOL_FIELDS = ("tool_calls", "tool_call_id", "function_call")
_PART = 'a text part is {"type": "text", "text": "..."}'
_AS_TRAINED = "send roles in the order in which the model was trained to see them"
_GENERATION = {"generation"}
_END = "\ue000the end\ue000"
"""Marks where a message ends, in what a template makes of it."""


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks trainable text; for inference it is just its body."""

    tags = _GENERATION

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class ChatTemplate:
    """One model's chat template. Raises ArtifactError if it does not parse."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        environment.filters["tojson"] = _tojson
        globals: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals.update(globals)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ArtifactError(f"the chat template does not parse: {error}", hint="rebuild the artifact") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, extra: Mapping[str, Any] | None = None) -> str:
        """The prompt for these messages; `extra` are variables of this template, such as `enable_thinking`.

        Raises RequestError if a message is malformed or the template refuses the conversation.
        """
        normal = [normalize_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        context = {**(extra or {}), **self._special_tokens, "messages": normal, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(tools=None, documents=None, **context)
        except TemplateError as error:
            raise RequestError(f"the chat template refuses these messages: {error}", param="messages", hint=_AS_TRAINED) from error
        except Exception as error:
            # The template is a program that ran on the user's input: whatever it raises, the input did it.
            raise RequestError(
                f"the chat template failed on these messages: {type(error).__name__}: {error}", param="messages", hint=_AS_TRAINED
            ) from error

    def render_open(self, messages: Sequence[Mapping[str, Any]], *, extra: Mapping[str, Any] | None = None) -> str:
        """The prompt for these messages up to the end of the last one's content, which the model goes on with."""
        *before, last = messages
        text = normalize_message(last, f"messages[{len(before)}]")["content"]
        rendered = self.render([*before, {**last, "content": text + _END}], add_generation_prompt=False, extra=extra)
        if _END not in rendered:
            raise RequestError(
                "the chat template does not write the last message out, so it cannot be continued",
                param="continue_final_message",
                hint="leave it out, or make the last message one of the assistant's",
            )
        return rendered[: rendered.rindex(_END)]


def normalize_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message whose content is plain text. `where` names it in errors (`messages[0]`).

    Clients send back what they were sent and more (ids, times, notes): a template reads what it knows.
    """
    role = message.get("role")
    if role in ("tool", "function"):
        raise RequestError(f"messages with the role {role!r} are not supported", param=f"{where}.role", hint="tools are not supported")
    if role not in ROLES:
        raise RequestError(f"role must be one of {', '.join(ROLES)}, not {role!r}", param=f"{where}.role", hint="leave other messages out")
    for name in _TOOL_FIELDS:
        if message.get(name) not in (None, []):
            raise RequestError(f"the message field {name!r} is not supported", param=f"{where}.{name}", hint="leave it out")
    normal = {name: value for name, value in message.items() if name not in _TOOL_FIELDS and value is not None}
    normal["role"] = "system" if role == "developer" else role
    normal["content"] = _plain_text(message.get("content"), role, f"{where}.content")
    return normal


def _plain_text(content: Any, role: str, where: str) -> str:
    match content:
        case str():
            return content
        case None if role == "assistant":
            return ""
        case list():
            return "\n".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))
        case _:
            raise RequestError("content must be a string or a list of text parts", param=where, hint=_PART)


def _part_text(part: Any, where: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "text"}:
            raise RequestError("a text part needs a string `text`", param=f"{where}.text", hint=_PART)
        case {"type": str(kind)}:
            raise RequestError(f"content of type {kind!r} is not supported", param=f"{where}.type", hint="this model reads text only")
        case _:
            raise RequestError("a content part must be an object", param=where, hint=_PART)
