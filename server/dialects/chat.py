"""POST /v1/chat/completions"""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from ..http.answering import answer
from ..http.body import read_request
from ..parsing.pieces import CallArguments, CallStart, Content, Message, Piece, Reasoning
from ..service import Service
from ..text.assembler import Delta
from ..text.token_bytes import TokenBytes
from .choices import ChoicesWriter
from .logprobs import chat_logprobs
from .planning import Ask, Prompt
from .responses import ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage, Function, ToolCall
from .schemas import ChatRequest


async def chat_completions(http: Request) -> Response:
    service: Service = http.app.state.service
    request = await read_request(http, ChatRequest)
    ask = await chat_ask(service, request)
    style = _ChatStyle(service.text.token_bytes, ask.logprobs is not None)
    writer = ChoicesWriter(service.model, ask, style, with_usage=request.include_usage())
    return await answer(http, service, ask, writer, stream=bool(request.stream))


async def chat_ask(service: Service, request: ChatRequest) -> Ask:
    """What a conversation asks for, in whichever API. Raises RequestError."""
    service.check_request(request)
    grammar = await service.grammar(request)
    prompt = await service.encode_chat(request.messages, request.template_variables())
    return Ask(
        prompts=[Prompt(prompt, continues=False)],
        params=request,
        param="messages",
        max_tokens=request.token_limit(),
        logprobs=request.wanted_logprobs(),
        choices=request.choices(),
        grammar=grammar,
    )


class _ChatStyle:
    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, token_bytes: TokenBytes, with_logprobs: bool) -> None:
        self._token_bytes = token_bytes
        self._with_logprobs = with_logprobs

    def opening(self, index: int) -> ChatChunkChoice:
        return ChatChunkChoice(index, ChatDelta(role="assistant", content=""))

    def chunk(self, index: int, delta: Delta) -> ChatChunkChoice:
        pieces = delta.all_pieces()
        return ChatChunkChoice(index, _delta_of(pieces[0]) if pieces else ChatDelta(), delta.finish_reason, self._logprobs(delta))

    def whole(self, index: int, delta: Delta) -> ChatChoice:
        return ChatChoice(index, _message_of(delta.all_pieces()), delta.finish_reason, self._logprobs(delta))

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return chat_logprobs(delta.tokens, self._token_bytes) if self._with_logprobs else None


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
