"""The answers of the HTTP API. Fields left UNSET do not appear, as OpenAI's own do not."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from ..text.assembler import Finish

_CHOICE = TypeVar("_CHOICE")


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ContentLogprob]
    refusal: None = None


class Function(msgspec.Struct):
    """Of a call: `arguments` is JSON text, in a stream a part of it."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCall(msgspec.Struct):
    """A whole call, or what a chunk adds to call number `index`."""

    function: Function
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class ChatMessage(msgspec.Struct):
    """`reasoning_content` is `reasoning` under its older name."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


RoutedExperts = list[list[list[int]]]
"""For each token that was computed, and each layer with experts: those that it chose, the best first."""


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    finish_reason: Finish | None
    logprobs: ChatLogprobs | None = None
    token_ids: Sequence[int] | UnsetType = UNSET
    routed_experts: RoutedExperts | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    finish_reason: Finish | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: Sequence[int] | UnsetType = UNSET
    routed_experts: RoutedExperts | UnsetType = UNSET


class PromptTokenLogprob(msgspec.Struct):
    """rank: by probability, from 1."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[int, PromptTokenLogprob] | None]
"""For each token of a prompt, by id: itself and the most likely ones. The first has none."""


class CompletionLogprobs(msgspec.Struct):
    """One entry per token in each list. text_offset counts characters of the choice's text. None: of a prompt's first token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: Finish | None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    token_ids: Sequence[int] | UnsetType | None = UNSET
    routed_experts: RoutedExperts | UnsetType = UNSET


class Answer(msgspec.Struct, Generic[_CHOICE], kw_only=True):
    """A whole answer or one chunk of a stream; `object` says which."""

    id: str
    object: str
    created: int
    model: str
    choices: list[_CHOICE]
    usage: Usage | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct):
    error: ErrorBody


class SamplingParamsCard(msgspec.Struct, omit_defaults=True):
    """What holds where a request does not say. max_tokens: only if there is another bound than the context."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int | None = None


class ModelCard(msgspec.Struct):
    id: str
    created: int
    max_model_len: int
    default_sampling_params: SamplingParamsCard
    tasks: list[str]
    object: str = "model"
    owned_by: str = "engine"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class Tokens(msgspec.Struct):
    """max_model_len: tokens that prompt and answer may have together."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Text(msgspec.Struct):
    prompt: str


class AddedToken(msgspec.Struct):
    content: str
    special: bool


class TokenizerInfo(msgspec.Struct):
    """Under the names of transformers' tokenizer_config.json. added_tokens_decoder: by their ids."""

    model_max_length: int
    added_tokens_decoder: dict[int, AddedToken]
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    tokenizer_class: str = "PreTrainedTokenizerFast"


class Version(msgspec.Struct):
    version: str
