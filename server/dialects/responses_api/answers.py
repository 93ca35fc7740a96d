"""What the Responses API answers: responses and their items. Their fields are OpenAI's, those of tools that run on its servers left out."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ..answers import ContentLogprob

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = msgspec.field(default_factory=list)
    logprobs: list[ContentLogprob] = msgspec.field(default_factory=list)


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


Part = OutputText | ReasoningText


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: Status = "in_progress"
    content: list[OutputText] = msgspec.field(default_factory=list)
    role: str = "assistant"


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """summary: reasoning is given whole."""

    id: str
    status: Status = "in_progress"
    content: list[ReasoningText] = msgspec.field(default_factory=list)
    summary: list[Any] = msgspec.field(default_factory=list)


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(msgspec.Struct):
    code: str
    message: str


class ResponseObject(msgspec.Struct, kw_only=True):
    """Fields of the request come back as they were given, with their defaults where OpenAI's clients need one."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    model: str
    instructions: str | None
    metadata: dict[str, str]
    previous_response_id: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    tools: list[Any]
    tool_choice: Any
    parallel_tool_calls: bool
    text: Any
    reasoning: Any
    store: bool
    truncation: str = "disabled"
    background: bool = False
    service_tier: str | UnsetType = UNSET


class ItemList(msgspec.Struct):
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class Deleted(msgspec.Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
