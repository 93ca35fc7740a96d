"""POST /v1/completions"""

from collections.abc import Sequence
from typing import Annotated, Any, cast

from fastapi import Depends
from starlette.responses import Response

from ...artifacts import RoutesInfo
from ..http.answering import answer
from ..http.body import JsonBody
from ..service import Served, Service
from ..text.assembler import Delta
from ..text.prompt_offsets import prompt_offsets
from ..text.token_bytes import TokenBytes
from .answers import Answer, CompletionChoice, CompletionLogprobs
from .choices import ChoicesWriter
from .logprobs import LogprobWriter, joined
from .planning import Ask, Prompt, truncated
from .routed_experts import routed_experts
from .schemas import COMPLETION_TOKENS, CompletionRequest


async def completions(service: Served, request: Annotated[CompletionRequest, Depends(JsonBody(CompletionRequest))]) -> Response:
    """Texts that go on from prompts."""
    service.check_request(request)
    grammar = await service.grammar(request)
    given = request.prompts()
    service.check_sequences(len(given) * request.choices())
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    prompts = await _tokens(service, request, texts) if texts else cast(list[Sequence[int]], given)
    room, right = service.limits.room(request.max_tokens), request.cuts_right()
    kept = [truncated(tokens, request.truncate_prompt_tokens, room, right=right) for tokens in prompts]
    ask = Ask(
        prompts=[Prompt(tokens, continues=True) for tokens in kept],
        params=request,
        param="prompt",
        max_tokens=request.max_tokens,
        usual_tokens=COMPLETION_TOKENS,
        logprobs=request.logprobs,
        prompt_logprobs=request.all_prompt_logprobs(),
        lists_end=request.scores_echo(),
        token_ids=bool(request.return_token_ids),
        stream=bool(request.stream),
        choices=request.choices(),
        grammar=grammar,
    )
    echoes = [""] * len(kept)
    if request.echo:
        echoes = texts if texts and kept == prompts else [await service.decode(tokens) for tokens in kept]
    style = _CompletionStyle(service.text.token_bytes, request, ask, echoes, service.limits.routes)
    writer = ChoicesWriter(service.model, ask, style, with_usage=request.include_usage(), continuous_usage=request.continuous_usage())
    return await answer(service, ask, writer, stream=bool(request.stream))


async def _tokens(service: Service, request: CompletionRequest, texts: list[str]) -> list[Sequence[int]]:
    fits = request.truncate_prompt_tokens is None
    return await service.encode_prompts(texts, add_special_tokens=request.add_special_tokens is not False, fits=fits)


class _CompletionStyle:
    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, token_bytes: TokenBytes, request: CompletionRequest, ask: Ask, echoes: list[str], routes: RoutesInfo | None) -> None:
        self._token_bytes = token_bytes
        self._logprob_writer = LogprobWriter(token_bytes, as_ids=bool(request.return_tokens_as_token_ids))
        self._request = request
        self._ask = ask
        self._echoes = echoes
        self._routes = routes if request.return_routed_experts else None

    def begin(self, answer: Answer[Any], first: Delta) -> None:
        pass

    def opening(self, index: int, first: Delta) -> CompletionChoice | None:
        if not self._request.echo and not self._ask.token_ids:
            return None
        choice = CompletionChoice(index, self._echo(index), None, self._echo_logprobs(index, first))
        return self._with_prompt(index, choice)

    def chunk(self, index: int, delta: Delta) -> CompletionChoice:
        logprobs = self._logprobs(index, delta) if delta.tokens else None
        return self._with_tokens(delta, CompletionChoice(index, delta.text, delta.finish_reason, logprobs))

    def whole(self, index: int, delta: Delta) -> CompletionChoice:
        logprobs = self._logprobs(index, delta)
        if logprobs is not None and (echoed := self._echo_logprobs(index, delta)) is not None:
            logprobs = joined(echoed, logprobs)
        choice = CompletionChoice(index, self._echo(index) + delta.text, delta.finish_reason, logprobs, None, None, None)
        if (count := self._request.prompt_logprobs) is not None:
            choice.prompt_logprobs = self._logprob_writer.prompt(self._prompt(index), delta.scores, count)
        return self._with_prompt(index, self._with_tokens(delta, choice))

    def _with_prompt(self, index: int, choice: CompletionChoice) -> CompletionChoice:
        if self._ask.token_ids:
            choice.prompt_token_ids = list(self._prompt(index))
        return choice

    def _with_tokens(self, delta: Delta, choice: CompletionChoice) -> CompletionChoice:
        if self._ask.token_ids:
            choice.token_ids = delta.ids
        choice.routed_experts = routed_experts(self._routes, delta)
        return choice

    def _prompt(self, index: int) -> Sequence[int]:
        return self._ask.prompts[index // self._ask.choices].tokens

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._ask.choices]

    def _echo_logprobs(self, index: int, first: Delta) -> CompletionLogprobs | None:
        if not self._request.echo or (count := self._request.logprobs) is None:
            return None
        tokens = self._prompt(index)
        offsets = prompt_offsets(self._echo(index), tokens, self._token_bytes)
        return self._logprob_writer.echo(tokens, offsets, first.scores, count)

    def _logprobs(self, index: int, delta: Delta) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        return self._logprob_writer.completion(delta.tokens, begin=len(self._echo(index)))
