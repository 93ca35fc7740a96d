"""POST /v1/chat/completions"""

from starlette.requests import Request
from starlette.responses import Response

from ..http.answering import answer
from ..http.body import read_request
from ..service import Service
from ..text.assembler import Delta
from ..text.token_bytes import TokenBytes
from .logprobs import chat_logprobs
from .planning import Ask, Prompt
from .responses import ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage
from .schemas import ChatRequest


async def chat_completions(http: Request) -> Response:
    service: Service = http.app.state.service
    request = await read_request(http, ChatRequest)
    service.check_request(request)
    prompt = await service.encode_chat(request.messages, request.template_variables())
    ask = Ask(
        prompts=[Prompt(prompt, continues=False)],
        params=request,
        param="messages",
        max_tokens=request.token_limit(),
        logprobs=request.wanted_logprobs(),
        choices=request.choices(),
    )
    return await answer(http, service, request, ask, _ChatStyle(service.text.token_bytes, ask.logprobs is not None))


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
        content = ChatDelta(content=delta.text) if delta.text else ChatDelta()
        return ChatChunkChoice(index, content, delta.finish_reason, self._logprobs(delta))

    def whole(self, index: int, delta: Delta) -> ChatChoice:
        return ChatChoice(index, ChatMessage(delta.text), delta.finish_reason, self._logprobs(delta))

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return chat_logprobs(delta.tokens, self._token_bytes) if self._with_logprobs else None
