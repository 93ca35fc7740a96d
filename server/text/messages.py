"""Messages as clients send them, as chat templates read them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
_PART = 'a text part is {"type": "text", "text": "..."}'
_CALL = 'a call is {"id": "...", "type": "function", "function": {"name": "...", "arguments": "{...}"}}'
_TOOL_CALLS = "use tools, tool_calls and the role tool instead"


@dataclass(frozen=True)
class Habits:
    """What one template reads.

    text, parts: content as a text, and as a list of parts. developer: the role of this name. absent_content: calls
    without content beside them. argument_text: calls have their arguments as JSON text, instead of as an object. thinking: reasoning
    has this name.
    """

    text: bool = True
    parts: bool = False
    developer: bool = False
    absent_content: bool = False
    argument_text: bool = False
    thinking: bool = False


def normalize(messages: Sequence[Mapping[str, Any]], habits: Habits) -> list[dict[str, Any]]:
    """Messages in the shape that the template reads. Raises RequestError."""
    names: dict[Any, str] = {}
    result = []
    for i, message in enumerate(messages):
        normal = normalize_message(message, f"messages[{i}]", habits)
        names |= {call.get("id"): call["function"]["name"] for call in normal.get("tool_calls", ())}
        if normal["role"] == "tool" and (name := names.get(normal.get("tool_call_id"))):
            normal.setdefault("name", name)  # some templates write whose result it is
        result.append(normal)
    return result


def normalize_message(message: Mapping[str, Any], where: str, habits: Habits) -> dict[str, Any]:
    """A message in the shape that the template reads. `where` names it in errors (`messages[0]`). Raises RequestError.

    Clients send back what they were sent and more (ids, times, notes): a template reads what it knows.
    """
    role = message.get("role")
    if role == "function" or message.get("function_call") is not None:
        field = "role" if role == "function" else "function_call"
        raise RequestError("the older way to call functions is not supported", param=f"{where}.{field}", hint=_TOOL_CALLS)
    if role not in ROLES:
        raise RequestError(f"role must be one of {', '.join(ROLES)}, not {role!r}", param=f"{where}.role", hint="leave other messages out")
    normal = {name: value for name, value in message.items() if value is not None and name != "tool_calls"}
    normal["role"] = "system" if role == "developer" and not habits.developer else role
    if calls := _calls(message.get("tool_calls"), role, f"{where}.tool_calls", habits):
        normal["tool_calls"] = calls
    _add_content(normal, message.get("content"), role, f"{where}.content", habits)
    _add_reasoning(normal, habits)
    return normal


def _add_content(normal: dict[str, Any], content: Any, role: str, where: str, habits: Habits) -> None:
    if content is None and role == "assistant":
        if not ("tool_calls" in normal and habits.absent_content):
            normal["content"] = ""
        return
    parts = _parts(content, where)
    if isinstance(content, list) and habits.parts:
        normal["content"] = parts
    elif habits.text:
        normal["content"] = "".join(part["text"] for part in parts)
    else:
        normal["content"] = parts


def _add_reasoning(normal: dict[str, Any], habits: Habits) -> None:
    """Under each name that templates have for it. One of these refuses it beside calls with content."""
    reasoning = normal.get("reasoning_content", normal.get("reasoning"))
    if isinstance(reasoning, str):
        normal["reasoning_content"] = normal["reasoning"] = reasoning
        if habits.thinking and not (normal.get("content") and "tool_calls" in normal):
            normal.setdefault("thinking", reasoning)


def content_text(content: Any, where: str) -> str:
    """The text of a message's content; none is empty. Raises RequestError."""
    return "" if content is None else "".join(part["text"] for part in _parts(content, where))


def _parts(content: Any, where: str) -> list[dict[str, str]]:
    match content:
        case str():
            return [{"type": "text", "text": content}]
        case list():
            return [{"type": "text", "text": _part_text(part, f"{where}[{i}]")} for i, part in enumerate(content)]
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


def _calls(calls: Any, role: str, where: str, habits: Habits) -> list[dict[str, Any]]:
    if calls is None or calls == []:
        return []
    if role != "assistant":
        raise RequestError(f"a message of the role {role} makes no calls", param=where, hint="calls are the assistant's")
    if not isinstance(calls, list):
        raise RequestError("tool_calls must be a list", param=where, hint=_CALL)
    return [_call(call, f"{where}[{i}]", habits) for i, call in enumerate(calls)]


def _call(call: Any, where: str, habits: Habits) -> dict[str, Any]:
    match call:
        case {"function": {"name": str(name), **rest}}:
            arguments = _arguments(rest.get("arguments"), f"{where}.function.arguments")
            given: Any = json.dumps(arguments, ensure_ascii=False) if habits.argument_text else arguments
            return {**call, "type": "function", "function": {**call["function"], "name": name, "arguments": given}}
        case _:
            raise RequestError("a call needs a function with a name", param=f"{where}.function", hint=_CALL)


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise RequestError("arguments must be a JSON object, as text", param=where, hint=_CALL) from None
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise RequestError("arguments must be a JSON object, as text", param=where, hint=_CALL)
    return arguments


def count_characters(messages: Sequence[Mapping[str, Any]]) -> int:
    """About how much there is to read."""
    return sum(len(str(message.get("content"))) + len(str(message.get("tool_calls", ""))) for message in messages)
