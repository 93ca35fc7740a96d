"""What the request handlers share."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from ..artifacts import PooledInfo
from ..errors import RequestError
from .dialects.grammars import grammar_of
from .dialects.params import GenerationParams
from .dialects.planning import Ask, ModelLimits, check_prompts, plan
from .dialects.schemas import GenerateRequest
from .metrics import Metrics
from .offload import LONG, offload
from .parsing.names import FormNames
from .text.assembler import Assembler
from .text.messages import count_characters
from .text.text import Text
from .text.token_jobs import Conversation, Prompts
from .texts import GENERATES, Texts, check_task
from .tokenizing import Tokenizing
from .workers.fleet import Fleet


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model reads it."""

    text: str
    tokens: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Service:
    """One model, served. `created` is in unix seconds; `hold_timeout` and `stream_silence` (see `EventStream`) in seconds.

    forms: how the model writes what is no plain text. pooled: as in the manifest.
    """

    model: str
    created: int
    limits: ModelLimits
    text: Text
    tokenizing: Tokenizing
    forms: FormNames
    fleet: Fleet
    metrics: Metrics
    hold_timeout: float
    stream_silence: float = 10.0
    pooled: PooledInfo | None = None

    def check_model(self, name: str | None) -> None:
        """A request without a model means the one there is. Raises RequestError (404) for another one."""
        if name is not None and name != self.model:
            raise RequestError(
                f"the model {name!r} does not exist",
                status=404,
                param="model",
                code="model_not_found",
                hint=f"this server has {self.model!r}",
            )

    async def prepare(self, ask: Ask) -> list[Assembler]:
        """Checks, waits while the worker loads, and plans. Raises RequestError."""
        await offload(sum(len(prompt.tokens) for prompt in ask.prompts), partial(check_prompts, ask, self.limits))
        most = (ask.usual_tokens or self.limits.max_context) if ask.max_tokens is None else ask.max_tokens
        ask.params.check_token_ids(self.limits.vocab_size)
        ask.params.check_min_tokens(most)
        return plan(ask, self.text, self.limits, await self.fleet.hold(self.hold_timeout))

    async def grammar(self, params: GenerationParams) -> str | None:
        """What the answers must follow, if the request says so. Raises RequestError for what cannot be honoured."""
        wanted = params.wanted()
        return None if wanted is None else await asyncio.to_thread(grammar_of, wanted)

    async def encode(self, prompts: Sequence[str], *, add_special_tokens: bool = True, one_bos: bool = True) -> list[Sequence[int]]:
        """Tokens of prompts as they come."""
        return [tokens.ids for tokens in await self.tokenizing.run(Prompts(prompts, add_special_tokens, one_bos))]

    async def encode_prompts(self, prompts: Sequence[str], *, add_special_tokens: bool = True, fits: bool = True) -> list[Sequence[int]]:
        """The same, of prompts to complete. fits: raise RequestError for one that cannot fit, before any work is done."""
        for prompt in prompts if fits else ():
            await self._check_length(prompt, "prompt")
        return await self.encode(prompts, add_special_tokens=add_special_tokens, one_bos=add_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        fits: bool = True,
    ) -> "ChatPrompt":
        """A conversation. fits: raise RequestError if it is longer than the model's context, before it is tokenized."""
        render = partial(
            self.text.render_parts,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            extra=variables,
        )
        parts = await offload(count_characters(messages) + len(str(tools)), render)
        rendered = "".join(parts)
        if fits:
            await self._check_length(rendered, "messages")
        (tokens,) = await self.tokenizing.run(Conversation(parts, add_special_tokens))
        return ChatPrompt(rendered, tokens.ids)

    async def _check_length(self, text: str, param: str) -> None:
        if len(text) > LONG and (least := await asyncio.to_thread(self.text.bound.least, text)) > self.limits.max_context:
            raise RequestError(
                f"the prompt has at least {least} tokens, and the model's context holds {self.limits.max_context}",
                param=param,
                code="context_length_exceeded",
                hint="shorten the prompt",
            )

    def check_sequences(self, wanted: int) -> None:
        """Raises RequestError for more than this server takes at once, before any work is done for them."""
        self.fleet.check_size(wanted)

    async def decode(self, tokens: Sequence[int]) -> str:
        return await offload(len(tokens), partial(self.text.decode, tokens))

    def texts_for(self, task: str, model: str | None) -> Texts:
        """What does this task. Raises RequestError for another model than there is, and for a task that it does not do."""
        self.check_model(model)
        check_task(self.pooled, task)
        assert self.pooled is not None
        return Texts(
            info=self.pooled,
            max_context=self.limits.max_context,
            vocab_size=self.limits.vocab_size,
            tokenizing=self.tokenizing,
            fleet=self.fleet,
            observer=self.metrics,
            hold_timeout=self.hold_timeout,
        )

    def check_request(self, request: GenerateRequest) -> None:
        check_task(self.pooled, GENERATES)
        request.check()
        self.check_model(request.model)


async def _the_service(http: Request) -> Service:
    service: Service = http.app.state.service
    return service


Served = Annotated[Service, Depends(_the_service)]
"""In the signature of a request handler: the service."""
