"""POST /v1/chat/completions"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import Depends
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from ...artifacts import RoutesInfo
from ..http.answering import answer
from ..http.body import JsonBody
from ..parsing.pieces import CallArguments, CallStart, Content, Message, Piece, Reasoning
from ..service import Served, Service
from ..text.assembler import Delta
from ..text.token_bytes import TokenBytes
from .answers import Answer, ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage, Function, ToolCall
from .choices import ChoicesWriter
from .grammars import chat_grammar
from .logprobs import LogprobWriter
from .planning import Ask, Prompt, truncated
from .routed_experts import routed_experts
from .schemas import ChatRequest
from .tools import tool_use


async def chat_completions(service: Served, request: Annotated[ChatRequest, Depends(JsonBody(ChatRequest))]) -> Response:
    """The next message of a conversation."""
    ask = await chat_ask(service, request)
    style = _ChatStyle(service.text.token_bytes, request, ask, service.limits.routes)
    writer = ChoicesWriter(service.model, ask, style, with_usage=request.include_usage(), continuous_usage=request.continuous_usage())
    return await answer(service, ask, writer, stream=bool(request.stream))


async def chat_ask(service: Service, request: ChatRequest, *, fits: bool = True, must_bound: bool = True) -> Ask:
    """What a conversation asks for, in whichever API. fits: raise RequestError if it is longer than the model's context.

    must_bound: raise RequestError for a budget of reasoning that this model cannot keep.
    """
    from ..parsing.parsing import parsing_of

    service.check_request(request)
    use = tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
    answer_grammar = await service.grammar(request)
    prompt = await service.encode_chat(
        request.messages,
        request.template_variables(),
        tools=use.definitions,
        add_generation_prompt=request.opens_turn(),
        continue_final_message=bool(request.continue_final_message),
        add_special_tokens=bool(request.add_special_tokens),
        fits=fits and request.truncate_prompt_tokens is None,
    )
    shows_reasoning = request.include_reasoning is not False
    parsing = parsing_of(service.forms, use.schemas, prompt.text, most_calls=use.most_calls, shows_reasoning=shows_reasoning)
    budget = request.thinking_token_budget
    grammar = None
    if use.must_call or use.strict or answer_grammar is not None or budget is not None:
        added = service.text.added_tokens()
        held = partial(chat_grammar, answer_grammar, use, parsing, added, thinking_budget=budget, must_bound=must_bound)
        grammar = await asyncio.to_thread(held)
    max_tokens = request.token_limit()
    tokens = truncated(prompt.tokens, request.truncate_prompt_tokens, service.limits.room(max_tokens), right=request.cuts_right())
    return Ask(
        prompts=[Prompt(tokens, continues=bool(request.continue_final_message))],
        params=request,
        param="messages",
        max_tokens=max_tokens,
        logprobs=request.wanted_logprobs(),
        parsing=parsing,
        prompt_logprobs=request.prompt_logprobs,
        token_ids=bool(request.return_token_ids),
        stream=bool(request.stream),
        choices=request.choices(),
        grammar=grammar,
    )


class _ChatStyle:
    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, token_bytes: TokenBytes, request: ChatRequest, ask: Ask, routes: RoutesInfo | None = None) -> None:
        self._logprob_writer = LogprobWriter(token_bytes, as_ids=bool(request.return_tokens_as_token_ids))
        self._ask = ask
        self._routes = routes if request.return_routed_experts else None
        self._role = request.role()
        self._echo = request.echoed()

    def begin(self, answer: Answer[Any], first: Delta) -> None:
        (prompt,) = self._ask.prompts
        if self._ask.token_ids:
            answer.prompt_token_ids = list(prompt.tokens)
        if answer.object == self.whole_object:
            answer.prompt_logprobs = None
        if self._ask.prompt_logprobs is not None:
            answer.prompt_logprobs = self._logprob_writer.prompt(prompt.tokens, first.scores, self._ask.prompt_logprobs)

    def opening(self, index: int, first: Delta) -> ChatChunkChoice:
        return ChatChunkChoice(index, ChatDelta(role=self._role, content=self._echo))

    def chunk(self, index: int, delta: Delta) -> ChatChunkChoice:
        pieces = delta.all_pieces()
        said = _delta_of(pieces[0]) if pieces else ChatDelta()
        logprobs = self._logprobs(delta) if delta.tokens else None
        return ChatChunkChoice(index, said, delta.finish_reason, logprobs, self._ids(delta), routed_experts(self._routes, delta))

    def whole(self, index: int, delta: Delta) -> ChatChoice:
        message = _message_of(delta.all_pieces())
        message.role = self._role
        message.content = self._echo + (message.content or "") if self._echo else message.content
        experts = routed_experts(self._routes, delta)
        return ChatChoice(index, message, delta.finish_reason, self._logprobs(delta), self._ids(delta), experts)

    def _ids(self, delta: Delta) -> Sequence[int] | UnsetType:
        return delta.ids if self._ask.token_ids else UNSET

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return self._logprob_writer.chat(delta.tokens) if self._ask.logprobs is not None else None


def _delta_of(piece: Piece) -> ChatDelta:
    match piece:
        case Content(text):
            return ChatDelta(content=text)
        case Reasoning(text):
            return ChatDelta(reasoning=text, reasoning_content=text)
        case CallStart(index, id, name):
            return ChatDelta(tool_calls=[ToolCall(Function("", name), id, "function", index)])
        case CallArguments(index, text):
            return ChatDelta(tool_calls=[ToolCall(Function(text), index=index)])


def _message_of(pieces: Sequence[Piece]) -> ChatMessage:
    """An answer that consists of calls alone has no content."""
    said = Message.of(pieces)
    calls = [ToolCall(Function(call.arguments, call.name), call.id, "function") for call in said.calls]
    message = ChatMessage(said.content or (None if calls else ""))
    if said.reasoning:
        message.reasoning = message.reasoning_content = said.reasoning
    if calls:
        message.tool_calls = calls
    return message
