"""A request of Anthropic's Messages API as a request for chat completions."""

from typing import Any

from ....errors import RequestError
from ..chat_form import chat_request
from ..schemas import ChatRequest, thinking_switch
from .conversation import chat_messages
from .schema import MessagesRequest, OutputConfig, ThinkingDisabled

FIELDS = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    ".function.parameters": ".input_schema",
    ".function": "",
}
"""Those that chat completions name otherwise."""
_TOOL = 'a tool is {"name": "...", "description": "...", "input_schema": {...}}; it runs where the client is'
_CHOICE = 'tool_choice has the type auto, any, tool or none, "tool" with a name'


def as_chat(request: MessagesRequest) -> ChatRequest:
    """Raises RequestError."""
    request.check()
    messages = chat_messages(request.system, request.messages)
    continues = bool(messages) and messages[-1]["role"] == "assistant"
    return chat_request(
        request,
        model=request.model,
        messages=messages,
        continue_final_message=continues or None,
        stop=request.stop_sequences or request.stop,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())] or None,
        chat_template_kwargs=_template_variables(request),
        thinking_token_budget=request.thinking_budget(),
        **_tool_choice(request.tool_choice),
        **_output_config(request.output_config),
    )


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise RequestError(f"the tool {kind!r} is not supported", param=f"{where}.type", code="unsupported_parameter", hint=_TOOL)
    for name in ("defer_loading", "input_examples"):
        if tool.get(name):
            raise RequestError(f"{name} is not supported", param=f"{where}.{name}", code="unsupported_parameter", hint="leave it out")
    match tool:
        case {"name": str(name), "input_schema": dict(schema)}:
            function = {"name": name, "parameters": schema} | {key: tool[key] for key in ("description", "strict") if key in tool}
            return {"type": "function", "function": function}
    raise RequestError("a tool needs a name and an input_schema", param=where, hint=_TOOL)


def _tool_choice(choice: dict[str, Any] | None) -> dict[str, Any]:
    match choice:
        case None:
            return {}
        case {"type": "auto" | "any" | "none" as kind}:
            wanted: Any = {"auto": "auto", "any": "required", "none": "none"}[kind]
        case {"type": "tool", "name": str(name)}:
            wanted = {"type": "function", "function": {"name": name}}
        case _:
            raise RequestError("this tool_choice is not known", param="tool_choice", code="unsupported_parameter", hint=_CHOICE)
    return {"tool_choice": wanted} | ({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {})


def _template_variables(request: MessagesRequest) -> dict[str, Any] | None:
    switch = {} if request.thinking is None else thinking_switch(not isinstance(request.thinking, ThinkingDisabled))
    return switch | (request.chat_template_kwargs or {}) or None


def _output_config(config: OutputConfig | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if config is not None and config.effort is not None:
        fields["reasoning_effort"] = config.effort
    if config is not None and config.format is not None:
        schema = {"name": "answer", "schema": config.format.schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields
