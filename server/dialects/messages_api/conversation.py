"""Anthropic's content blocks as chat messages."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import msgspec

from ....errors import RequestError

_ATTRIBUTION = "x-anthropic-billing-header:"
"""Begins a block of Claude Code's system prompt that differs in every request and is not meant for the model."""
_BLOCKS = {
    "user": 'a user\'s blocks are {"type": "text"} and {"type": "tool_result"}',
    "assistant": 'an assistant\'s blocks are {"type": "text"}, {"type": "thinking"} and {"type": "tool_use"}',
    "system": 'a system prompt\'s blocks are {"type": "text"}',
}
_ROLES = "a message's role is user, assistant or system"


def chat_messages(system: str | Sequence[Any] | None, messages: Sequence[Any]) -> list[dict[str, Any]]:
    """In the form of chat completions. Raises RequestError for blocks that cannot be read."""
    found = []
    if text := _texts(system or "", "system", "system"):
        found.append({"role": "system", "content": text})
    for i, message in enumerate(messages):
        found += _chat_messages(message, f"messages[{i}]")
    return found


def _chat_messages(message: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    content = message.get("content")
    match message.get("role"):
        case "assistant":
            yield _assistant(_blocks(content, f"{where}.content"), f"{where}.content")
        case "user":
            yield from _user(_blocks(content, f"{where}.content"), f"{where}.content")
        case "system":
            yield {"role": "system", "content": _texts(content, "system", f"{where}.content")}
        case role:
            raise RequestError(f"there is no role {role!r}", param=f"{where}.role", hint=_ROLES)


def _user(blocks: Sequence[Any], where: str) -> Iterator[dict[str, Any]]:
    """A message for each tool result, and one for the texts between them."""
    texts: list[dict[str, Any]] = []
    for i, block in enumerate(blocks):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append({"type": "text", "text": text})
            case {"type": "tool_result", "tool_use_id": str(id)}:
                if texts:
                    yield {"role": "user", "content": texts}
                    texts = []
                result = {
                    "role": "tool",
                    "tool_call_id": id,
                    "content": _texts(block.get("content") or "", "tool_result", f"{where}[{i}].content"),
                }
                yield result | ({"is_error": True} if block.get("is_error") else {})
            case _:
                _refuse(block, "user", f"{where}[{i}]")
    if texts or not blocks:
        yield {"role": "user", "content": texts}


def _assistant(blocks: Sequence[Any], where: str) -> dict[str, Any]:
    text = reasoning = ""
    calls = []
    for i, block in enumerate(blocks):
        match block:
            case {"type": "text", "text": str(more)}:
                text += more
            case {"type": "thinking", "thinking": str(more)}:
                reasoning += more
            case {"type": "redacted_thinking"}:
                continue  # of another server: nobody here can read it
            case {"type": "tool_use", "id": str(id), "name": str(name), "input": dict(input)}:
                arguments = msgspec.json.encode(input).decode()
                calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
            case _:
                _refuse(block, "assistant", f"{where}[{i}]")
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _texts(content: Any, kind: str, where: str) -> str:
    """The text of blocks that are all text; a line for each."""
    texts = []
    for i, block in enumerate(_blocks(content, where)):
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                _refuse(block, kind, f"{where}[{i}]")
    return "\n".join(text for text in texts if not (kind == "system" and text.startswith(_ATTRIBUTION)))


def _blocks(content: Any, where: str) -> Sequence[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RequestError("content must be a string or a list of blocks", param=where, hint=_BLOCKS["user"])
    return content


def _refuse(block: Any, kind: str, where: str) -> NoReturn:
    hint = _BLOCKS.get(kind, 'a tool\'s result is a string or {"type": "text"} blocks')
    match block:
        case {"type": "text" | "thinking" | "tool_use" | "tool_result" as known}:
            raise RequestError(f"this block of type {known!r} cannot be read here", param=where, hint=hint)
        case {"type": str(other)}:
            raise RequestError(f"content of type {other!r} is not supported", param=f"{where}.type", hint=hint)
        case _:
            raise RequestError("a content block must be an object with a type", param=where, hint=hint)
