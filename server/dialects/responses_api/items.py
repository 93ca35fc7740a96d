"""Items of the Responses API: those that a request brings, as chat messages."""

from collections.abc import Sequence
from typing import Any

from ....errors import RequestError

Item = dict[str, Any]
_KINDS = "an item is a message, a function_call, a function_call_output or reasoning"
_ROLES = ("user", "assistant", "system", "developer")
_PARTS = 'a part is {"type": "input_text", "text": "..."}, or output_text of an assistant'


def items_of(given: str | Sequence[Item]) -> list[Item]:
    """A request's input as items that have a type. Null is nothing."""
    items: Sequence[Item] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    present = [{name: value for name, value in item.items() if value is not None} for item in items]
    return [{"type": "message", **item} if "role" in item else item for item in present]


def chat_messages(items: Sequence[Item], offset: int = 0) -> list[dict[str, Any]]:
    """Reasoning, text and calls that follow each other are one message of the assistant's. Raises RequestError.

    offset: how many of the items are none of the request's, whose places errors name.
    """
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        where = f"input[{i - offset}]"
        match item:
            case {"type": "message", "role": "assistant"}:
                turn = _turn(messages, after=("content", "tool_calls"))
                turn["content"] = _text(item.get("content"), f"{where}.content")
            case {"type": "message", "role": role} if role in _ROLES:
                messages.append({"role": role, "content": _text(item.get("content"), f"{where}.content")})
            case {"type": "reasoning"}:
                turn = _turn(messages, after=("content", "tool_calls"))
                turn["reasoning_content"] = turn.get("reasoning_content", "") + _text(item.get("content") or "", f"{where}.content")
            case {"type": "function_call", "call_id": str(id), "name": str(name), "arguments": str(arguments)}:
                turn = _turn(messages, after=())
                call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                turn.setdefault("tool_calls", []).append(call)
            case {"type": "function_call_output", "call_id": str(id)}:
                messages.append({"role": "tool", "tool_call_id": id, "content": _text(item.get("output"), f"{where}.output")})
            case {"type": "message"}:
                raise RequestError(f"role must be one of {', '.join(_ROLES)}", param=f"{where}.role", hint=_KINDS)
            case {"type": "function_call" | "function_call_output" as kind}:
                raise RequestError(f"this {kind} is not complete", param=where, hint="it has a call_id, a call also name and arguments")
            case {"type": str(kind)}:
                raise RequestError(f"items of type {kind!r} are not supported", param=f"{where}.type", hint=_KINDS)
            case _:
                raise RequestError("an item must have a type or a role", param=where, hint=_KINDS)
    return messages


def _turn(messages: list[dict[str, Any]], *, after: Sequence[str]) -> dict[str, Any]:
    """The assistant's message that goes on; a new one behind one with a field of `after`, and behind others' messages."""
    if not messages or messages[-1]["role"] != "assistant" or any(name in messages[-1] for name in after):
        messages.append({"role": "assistant"})
    return messages[-1]


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError("content must be a string or a list of parts", param=where, hint=_PARTS)
    return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    match part:
        case {"type": "input_text" | "output_text" | "reasoning_text", "text": str(text)}:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": str(kind)}:
            raise RequestError(f"content of type {kind!r} is not supported", param=f"{where}.type", hint=_PARTS)
        case _:
            raise RequestError("a content part must be an object", param=where, hint=_PARTS)
