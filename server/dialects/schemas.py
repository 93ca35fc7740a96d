"""The requests of the HTTP API; decoding.py makes them of bodies.

A field that is not declared here is refused by name, and so is one that would change the answer and is
not supported. Fields that cannot change an answer of this server are accepted: WITHOUT_EFFECT, and docs/api.md, name each.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ...errors import RequestError
from .params import MAX_LOGPROBS, GenerationParams, Natural, refuse_set_fields

MAX_CHOICES = 128
COMPLETION_TOKENS = 16
"""Of a completion whose request does not say how many: OpenAI's default."""
WITHOUT_EFFECT = {
    "user": "who asks",
    "metadata": "notes of theirs",
    "safety_identifier": "who asks",
    "store": "keeping the answer: nothing is kept",
    "service_tier": "a price and a queue: all requests have the same",
    "prompt_cache_key": "routing to a cache: equal prefixes are found without",
    "prompt_cache_retention": "how long a cache lives: equal prefixes are found as long as there is room",
    "prompt_cache_options": "the same",
    "moderation": "a check of the text beside the answer: there is none",
    "verbosity": "models that are trained to know it",
    "include_obfuscation": "in `stream_options`: padding that hides the length of tokens; there is none",
    "spaces_between_special_tokens": "spaces that some tokenizers put there: those of artifacts do not",
}
"""Fields that are accepted with any value, and ignored: what they are about elsewhere."""
MAX_MESSAGES = 10_000
MAX_TOKENS = 2**18
MAX_PROMPTS = 4_096
"""Lists that are longer than any use of them: what they hold is not looked at."""
MAX_TOOLS = 1_000
Messages = Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)]
Tools = Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)]


_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "priority": (0,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
}
_NO_BEAMS = "ask for n sampled choices with logprobs, and take the one whose sum is largest; temperature 0 follows the likeliest tokens"
_INSTEAD = dict.fromkeys(("use_beam_search", "best_of", "length_penalty", "early_stopping"), _NO_BEAMS)
"""What to do instead of what is not supported."""
_UNSUPPORTED_IN_CHAT = _UNSUPPORTED | {
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "documents": ([],),
}


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    """Default: false. Whether a chunk with the usage ends the stream."""
    continuous_usage_stats: bool | None = None
    """Default: false. With it every chunk has a usage."""
    include_obfuscation: bool | None = None
    """Ignored: there is no padding that hides the length of tokens."""


class GenerateRequest(GenerationParams, kw_only=True):
    """What chat and completions have in common."""

    model: str | None = None
    """Default: the one there is. Another name is a 404."""
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    """Default: 1. Answers to each prompt; the k-th gets `seed + k`."""
    stream: bool | None = None
    """Default: false. Server-sent events."""
    stream_options: StreamOptions | None = None
    """Of a stream: `include_usage`, and `continuous_usage_stats`, with which every chunk has a usage."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    moderation: Any = None
    prompt_cache_options: Any = None

    return_token_ids: bool | None = None
    """Default: false. `prompt_token_ids` and `token_ids`, as vLLM has them: all tokens that came, the end of text and what a stop string
    cuts off included."""
    return_tokens_as_token_ids: bool | None = None
    """Default: false. Tokens in `logprobs` are called `token_id:ID`."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """Keeps the last so many tokens of a prompt; -1: as many as the context holds beside `max_tokens`."""
    truncation_side: Literal["left", "right"] | None = None
    """Default: left. What `truncate_prompt_tokens` cuts off: the beginning, or with right the end."""
    add_special_tokens: bool | None = None
    """Default: of a chat false, of completions true. What the tokenizer puts around a text."""
    echo: bool | None = None
    """Default: false. Completions: the prompt before each answer; chat: the last message, if the answer goes on with it."""

    priority: Any = None
    spaces_between_special_tokens: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    early_stopping: Any = None

    def choices(self) -> int:
        return self.n or 1

    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def continuous_usage(self) -> bool:
        """Whether every chunk says how much it is so far."""
        return bool(self.stream_options and self.stream_options.include_usage and self.stream_options.continuous_usage_stats)

    def cuts_right(self) -> bool:
        """Whether it is the end of a prompt that `truncate_prompt_tokens` cuts off."""
        return self.truncation_side == "right"

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        """Fields that would change the answer, each with the values that ask for what happens anyway."""
        return _UNSUPPORTED

    def check(self) -> None:
        """Rules that hold between fields. Raises RequestError."""
        refuse_set_fields(self, self.unsupported(), _INSTEAD)
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is only allowed with stream: true", param="stream_options", hint="ask for a stream, or leave it out"
            )
        if self.truncate_prompt_tokens == 0:
            raise RequestError(
                "truncate_prompt_tokens is 0, which leaves no prompt",
                param="truncate_prompt_tokens",
                hint="-1 keeps what the context holds",
            )
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs is not given in a stream",
                param="prompt_logprobs",
                hint="leave stream out; in completions echo with logprobs streams",
            )


class ChatRequest(GenerateRequest, kw_only=True):
    messages: Messages
    """The conversation. Messages may carry what clients add to them (`id`, `metadata`, `cache_control`): the template reads what it
    knows."""
    max_completion_tokens: Natural | None = None
    """`max_tokens` under its newer name."""
    logprobs: bool | None = None
    """Default: false. Logprobs of the model's own distribution, before temperature and penalties."""
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Alternatives of each token; needs `logprobs: true`."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the template."""
    add_generation_prompt: bool | None = None
    """Default: true. Whether an answer begins after the messages."""
    continue_final_message: bool | None = None
    """Default: false. Whether the last message goes on instead of a new one."""

    include_reasoning: bool | None = None
    """Default: true. False leaves the reasoning out of the answer; it is generated, and counted, all the same."""
    thinking_token_budget: Natural | None = None
    """Ends the reasoning after so many tokens, if the model has a token for that."""
    tools: Tools | None = None
    """Functions that the model may call: see Tools."""
    tool_choice: str | dict[str, Any] | None = None
    """Default: `auto`. `none`, `required`, or the function that is to be called."""
    parallel_tool_calls: bool | None = None
    """Default: true. False keeps the first call only."""

    functions: Any = None
    """`tools` under their older name, which is refused."""
    function_call: Any = None
    """`tool_choice` under its older name, which is refused."""
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    documents: Any = None
    reasoning_effort: str | None = None
    """A variable for templates that read it."""
    verbosity: Any = None

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        return _UNSUPPORTED_IN_CHAT

    def template_variables(self) -> dict[str, Any]:
        """What the template may read besides the messages; one that knows no such variable does not."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        switch = thinking_switch(False) if self.reasoning_effort == "none" else {}
        return effort | switch | (self.chat_template_kwargs or {})

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", hint="set logprobs, or leave it out")
        check_template_variables(self.chat_template_kwargs)
        check_continuation(self.add_generation_prompt, self.continue_final_message)
        for name, newer in (("functions", "tools"), ("function_call", "tool_choice")):
            if getattr(self, name) not in (None, [], "none", "auto"):
                raise RequestError(
                    f"{name} is not supported", param=name, code="unsupported_parameter", hint=f"use {newer}, which replaced it"
                )

    def opens_turn(self) -> bool:
        """Whether the prompt ends with the beginning of an answer."""
        return not self.continue_final_message and self.add_generation_prompt is not False

    def role(self) -> str:
        """Whose the answer is."""
        return "assistant" if self.opens_turn() or not self.messages else str(self.messages[-1].get("role"))

    def echoed(self) -> str:
        """What the answer begins with."""
        content = self.messages[-1].get("content") if self.echo and self.messages[-1].get("role") == self.role() else None
        return content if isinstance(content, str) else ""

    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def check_continuation(add_generation_prompt: bool | None, continue_final_message: bool | None) -> None:
    """Raises RequestError for an answer that is to begin and to go on."""
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
            hint="the last message goes on, or an answer begins: leave one of them out",
        )


def thinking_switch(on: bool) -> dict[str, bool]:
    """The variables by which templates let a model reason first, or not; each template knows one at most."""
    return {"enable_thinking": on, "thinking": on}


def check_template_variables(variables: dict[str, Any] | None) -> None:
    """Raises RequestError for those that a request has fields for."""
    if reserved := {"messages", "add_generation_prompt", "tools", "documents"} & set(variables or {}):
        raise RequestError(
            f"chat_template_kwargs may not set {min(reserved)}", param="chat_template_kwargs", hint="it has fields of its own"
        )


class CompletionRequest(GenerateRequest, kw_only=True):
    prompt: str | list[str | Natural | list[Natural]]
    """Texts or lists of token ids."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Logprobs of the model's own distribution, before temperature and penalties, with so many alternatives each."""

    best_of: Any = None
    suffix: Any = None

    def unsupported(self) -> dict[str, tuple[Any, ...]]:
        return _UNSUPPORTED | {"best_of": (self.choices(),), "suffix": ("",)}

    def scores_echo(self) -> bool:
        """Whether the answer's logprobs begin with those of the prompt before it."""
        return bool(self.echo) and self.logprobs is not None

    def all_prompt_logprobs(self) -> int | None:
        """Alternatives per token of the prompt, whoever asks for them."""
        return max(self.prompt_logprobs or 0, self.logprobs or 0) if self.scores_echo() else self.prompt_logprobs

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list of texts or a list of token lists."""
        return prompt_list(self.prompt, "prompt")


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    """Default: the one there is. Another name is a 404."""
    prompt: str | None = None
    """A text. Either this or `messages`."""
    messages: Messages | None = None
    """A conversation, which goes through the chat template."""
    add_generation_prompt: bool | None = None
    """Default: true. Whether an answer begins after the messages."""
    continue_final_message: bool | None = None
    """Default: false. Whether the last message goes on instead of a new one."""
    add_special_tokens: bool | None = None
    """Default: of messages false, of a text true. What the tokenizer puts around a text."""
    return_token_strs: bool | None = None
    """Default: false. Whether the answer also has each token's text."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the template."""
    tools: Tools | None = None
    """Shown to the model by the template."""

    def check(self) -> None:
        check_template_variables(self.chat_template_kwargs)
        check_continuation(self.add_generation_prompt, self.continue_final_message)
        if (self.prompt is None) == (self.messages is None):
            raise RequestError(
                "give either prompt or messages", param="prompt", hint="messages go through the chat template, a prompt does not"
            )


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    tokens: Annotated[list[Natural], Meta(max_length=MAX_TOKENS)]
    """Token ids."""
    model: str | None = None
    """Default: the one there is. Another name is a 404."""


def prompt_list(given: str | list[str | Natural | list[Natural]], param: str) -> list[str] | list[list[int]]:
    """A text, several, tokens or several lists of them as a list of texts or a list of token lists. param: the field that errors name."""
    match given:
        case str():
            return [given]
        case [str() | list(), *_] if len(given) > MAX_PROMPTS:
            raise RequestError(
                f"{len(given)} prompts in one request, and no more than {MAX_PROMPTS} may be",
                param=param,
                code="too_many_sequences",
                hint="ask in several requests",
            )
        case []:
            raise RequestError(f"{param} must not be empty", param=param, hint="give a text, or token ids")
        case _ if texts := _all_of(given, str):
            return texts
        case _ if tokens := _all_of(given, int):
            return [tokens]
        case _ if (lists := _all_of(given, list)) and all(lists):
            return lists
    raise RequestError(
        f"{param} must be a string, a list of strings, a list of tokens or a list of lists of tokens",
        param=param,
        hint="texts and tokens cannot be mixed",
    )


_ITEM = TypeVar("_ITEM")


def _all_of(items: list[Any], kind: type[_ITEM]) -> list[_ITEM] | None:
    return items if all(isinstance(item, kind) for item in items) else None
