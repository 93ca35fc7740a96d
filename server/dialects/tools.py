"""What a request says about tools: which there are, and whether they must be called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import RequestError

_TOOL = 'a tool is {"type": "function", "function": {"name": "...", "parameters": {...}}}'
_CHOICE = 'tool_choice is "auto", "none", "required" or {"type": "function", "function": {"name": "..."}}'
_EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolUse:
    """definitions: as the template reads them. schemas: of the parameters of each function that may be called.

    must_call: one at least. strict: arguments must follow their schema. most_calls: None for any number.
    """

    definitions: Sequence[Mapping[str, Any]] = ()
    schemas: Mapping[str, Any] = field(default_factory=dict)
    must_call: bool = False
    strict: bool = False
    most_calls: int | None = None

    @property
    def checked(self) -> list[tuple[int, str]]:
        """(index among the definitions, name) of each function whose schema must hold."""
        names = [tool["function"]["name"] for tool in self.definitions]
        return [(index, name) for index, name in enumerate(names) if name in self.schemas]


def tool_use(tools: Sequence[Mapping[str, Any]] | None, choice: Any, parallel: bool | None) -> ToolUse:
    """From the fields `tools`, `tool_choice` and `parallel_tool_calls`. Raises RequestError.

    A choice of none offers no tool; a named one offers only that. The template still shows all, but for none.
    """
    functions = {function["name"]: function for function in (_function(tool, f"tools[{i}]") for i, tool in enumerate(tools or ()))}
    if len(functions) < len(tools or ()):
        raise RequestError("two tools have the same name", param="tools", hint="give each function a name of its own")
    kind, name = _choice(choice)
    if kind in ("required", "named") and not functions:
        raise RequestError(f"tool_choice {choice!r} needs tools", param="tool_choice", hint="list them in tools")
    if kind == "named" and name not in functions:
        raise RequestError(f"tool_choice names {name!r}, which is not among the tools", param="tool_choice", hint="name one that is")
    if kind == "none" or not functions:
        return ToolUse()
    offered = {name: functions[name]} if kind == "named" else functions
    return ToolUse(
        definitions=list(tools or ()),
        schemas={name: function.get("parameters") or _EMPTY for name, function in offered.items()},
        must_call=kind != "auto",
        strict=any(function.get("strict") for function in offered.values()),
        most_calls=1 if parallel is False or kind == "named" else None,
    )


def _function(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type", "function")
    if kind != "function":
        raise RequestError(f"tools of type {kind!r} are not supported", param=f"{where}.type", code="unsupported_parameter", hint=_TOOL)
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
        raise RequestError("a tool needs a function with a name", param=f"{where}.function", hint=_TOOL)
    if not isinstance(function.get("parameters"), dict | None):
        raise RequestError("parameters must be a JSON schema", param=f"{where}.function.parameters", hint=_TOOL)
    return function


def _choice(choice: Any) -> tuple[Literal["auto", "none", "required", "named"], str]:
    match choice:
        case None:
            return "auto", ""
        case "auto" | "none" | "required":
            return choice, ""
        case {"type": "function", "function": {"name": str(name)}}:
            return "named", name
    raise RequestError(f"tool_choice {choice!r} is not supported", param="tool_choice", code="unsupported_parameter", hint=_CHOICE)
