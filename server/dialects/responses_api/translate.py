"""A request of the Responses API as a request for chat completions."""

from collections.abc import Sequence
from typing import Any

from ....errors import RequestError
from ..chat_form import chat_request
from ..schemas import ChatRequest
from .items import Item, chat_messages
from .schema import ResponsesRequest, TextConfig

FIELDS = {
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
    ".function": "",
}
"""Those that chat completions name otherwise."""
_TOOL = 'a tool is {"type": "function", "name": "...", "parameters": {...}}; it runs where the client is'
_CHOICE = 'tool_choice is "auto", "none", "required" or {"type": "function", "name": "..."}'


def as_chat(request: ResponsesRequest, history: Sequence[Item], given: Sequence[Item]) -> ChatRequest:
    """history: the items before those that the request brings. Raises RequestError."""
    system = [] if request.instructions is None else [{"role": "system", "content": request.instructions}]
    return chat_request(
        request,
        model=request.model,
        messages=[*system, *chat_messages([*history, *given], len(history))],
        max_completion_tokens=request.max_output_tokens,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())] or None,
        tool_choice=_tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        logprobs=request.wants_logprobs() or None,
        top_logprobs=request.top_logprobs if request.wants_logprobs() else None,
        reasoning_effort=request.reasoning and request.reasoning.effort,
        chat_template_kwargs=request.chat_template_kwargs,
        **_response_format(request.text),
    )


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise RequestError(f"tools of type {kind!r} are not supported", param=f"{where}.type", code="unsupported_parameter", hint=_TOOL)
    if tool.get("defer_loading"):
        raise RequestError(
            "defer_loading is not supported", param=f"{where}.defer_loading", code="unsupported_parameter", hint="leave it out"
        )
    return {"type": "function", "function": {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}}


def _tool_choice(choice: Any) -> Any:
    match choice:
        case None | str():
            return choice
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
    raise RequestError("this tool_choice is not supported", param="tool_choice", code="unsupported_parameter", hint=_CHOICE)


def _response_format(text: TextConfig | None) -> dict[str, Any]:
    format = text and text.format
    if not format or format.type == "text":
        return {}
    if format.type == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": format.name, "description": format.description, "schema": format.schema, "strict": format.strict}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
