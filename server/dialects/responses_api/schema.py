"""Requests of OpenAI's Responses API, validated as they are decoded."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..params import MAX_LOGPROBS, GenerationParams, Natural, refuse_set_fields
from ..schemas import Messages

WITHOUT_EFFECT = frozenset(
    {
        *("user", "safety_identifier"),  # describe the caller
        *("service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),  # steer OpenAI's servers
        "stream_options",  # hides the length of tokens
        "max_tool_calls",  # of tools that run on the server: there are none
        "moderation",  # what OpenAI's servers do with a text
    }
)
"""Fields that are accepted with any value, and ignored."""
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "prompt": (),
    "truncation": ("disabled",),
    "context_management": ([],),
    "prompt_logprobs": (),
    "return_routed_experts": (False,),
    "routed_experts_start_len": (),
}
_INSTEAD = {
    "background": "ask for a stream",
    "conversation": "go on from previous_response_id, or send all items",
    "prompt": "send the text as input or instructions",
    "truncation": "send fewer items",
    "context_management": "send fewer items",
    "prompt_logprobs": "ask chat completions for them",
    "return_routed_experts": "ask chat completions for them",
}
"""What to do instead of what is not supported."""
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]


class ReasoningConfig(msgspec.Struct, forbid_unknown_fields=True):
    """summary: accepted and ignored, as reasoning is given whole."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, forbid_unknown_fields=True):
    """verbosity: accepted and ignored, as in chat completions."""

    format: TextFormat | None = None
    verbosity: Any = None


class ResponsesRequest(GenerationParams, kw_only=True):
    """Beside OpenAI's fields those of sampling and stopping that chat completions have."""

    input: str | Messages
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Natural | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[Include] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    user: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    stream_options: Any = None
    max_tool_calls: Any = None
    moderation: Any = None

    background: Any = None
    conversation: Any = None
    prompt: Any = None
    truncation: Any = None
    context_management: Any = None

    def check(self) -> None:
        """Raises RequestError for what would change the answer and is not supported."""
        refuse_set_fields(self, _UNSUPPORTED, _INSTEAD)

    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def is_stored(self) -> bool:
        return self.store is not False
