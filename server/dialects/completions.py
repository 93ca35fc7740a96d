"""POST /v1/completions"""

from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from ..http.answering import answer
from ..http.body import read_request
from ..service import Service
from ..text.assembler import Delta
from ..text.token_bytes import TokenBytes
from .choices import ChoicesWriter
from .logprobs import completion_logprobs
from .planning import Ask, Prompt
from .responses import CompletionChoice, CompletionLogprobs
from .schemas import COMPLETION_TOKENS, CompletionRequest


async def completions(http: Request) -> Response:
    service: Service = http.app.state.service
    request = await read_request(http, CompletionRequest)
    service.check_request(request)
    grammar = await service.grammar(request)
    given = request.prompts()
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    prompts = await service.encode_prompts(texts) if texts else cast(list[list[int]], given)
    ask = Ask(
        prompts=[Prompt(tokens, continues=True) for tokens in prompts],
        params=request,
        param="prompt",
        max_tokens=request.max_tokens,
        usual_tokens=COMPLETION_TOKENS,
        logprobs=request.logprobs,
        choices=request.choices(),
        grammar=grammar,
    )
    echoes = (texts or [await service.decode(prompt) for prompt in prompts]) if request.echo else [""] * len(prompts)
    style = _CompletionStyle(service.text.token_bytes, ask, echoes)
    writer = ChoicesWriter(service.model, ask, style, with_usage=request.include_usage())
    return await answer(http, service, ask, writer, stream=bool(request.stream))


class _CompletionStyle:
    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, token_bytes: TokenBytes, ask: Ask, echoes: list[str]) -> None:
        self._token_bytes = token_bytes
        self._with_logprobs = ask.logprobs is not None
        self._choices = ask.choices
        self._echoes = echoes

    def opening(self, index: int) -> CompletionChoice | None:
        echo = self._echo(index)
        return CompletionChoice(index, echo, None) if echo else None

    def chunk(self, index: int, delta: Delta) -> CompletionChoice:
        return CompletionChoice(index, delta.text, delta.finish_reason, self._logprobs(delta))

    def whole(self, index: int, delta: Delta) -> CompletionChoice:
        return CompletionChoice(index, self._echo(index) + delta.text, delta.finish_reason, self._logprobs(delta))

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._choices]

    def _logprobs(self, delta: Delta) -> CompletionLogprobs | None:
        return completion_logprobs(delta.tokens, self._token_bytes) if self._with_logprobs else None
