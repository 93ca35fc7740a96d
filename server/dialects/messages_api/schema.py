"""Requests of Anthropic's Messages API, validated as they are decoded."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..params import MAX_STOPS, GenerationParams, Natural, StopString, refuse_set_fields
from ..schemas import Messages

WITHOUT_EFFECT = frozenset(
    {
        *("metadata", "user_profile_id", "workspace_id"),  # describe the caller
        *("service_tier", "speed", "inference_geo"),  # choose among Anthropic's servers
        "cache_control",  # equal prefixes are found without
    }
)
"""Fields that are accepted with any value, and ignored."""
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "context_management": ({}, {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
    "diagnostics": (),
    "prompt_logprobs": (),
    "return_routed_experts": (False,),
    "routed_experts_start_len": (),
}
_INSTEAD = {
    "mcp_servers": "call them where the client is, as tools",
    "context_management": "send fewer messages",
    "prompt_logprobs": "ask chat completions for them",
    "return_routed_experts": "ask chat completions for them",
}
"""What to do instead of what is not supported."""


class ThinkingEnabled(msgspec.Struct, tag_field="type", tag="enabled", forbid_unknown_fields=True):
    budget_tokens: Natural
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(msgspec.Struct, tag_field="type", tag="adaptive", forbid_unknown_fields=True):
    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(msgspec.Struct, tag_field="type", tag="disabled", forbid_unknown_fields=True):
    pass


Thinking = ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled


class JsonFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    effort: str | None = None
    format: JsonFormat | None = None


class MessagesRequest(GenerationParams, kw_only=True):
    """Beside Anthropic's fields those of sampling and stopping that chat completions have."""

    messages: Messages
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    thinking: Thinking | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    metadata: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
    service_tier: Any = None
    speed: Any = None
    inference_geo: Any = None
    cache_control: Any = None

    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None
    diagnostics: Any = None

    def check(self) -> None:
        """Raises RequestError for what would change the answer and is not supported."""
        refuse_set_fields(self, _UNSUPPORTED, _INSTEAD)

    def thinking_budget(self) -> int | None:
        """Tokens of reasoning, None for no bound."""
        return self.thinking.budget_tokens if isinstance(self.thinking, ThinkingEnabled) else None

    def shows_thinking(self) -> bool:
        return not isinstance(self.thinking, ThinkingEnabled | ThinkingAdaptive) or self.thinking.display != "omitted"
