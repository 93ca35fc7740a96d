"""What the request handlers share."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..errors import RequestError
from .dialects.planning import Ask, ModelLimits, check_prompts, plan
from .dialects.schemas import GenerateRequest
from .metrics import Metrics
from .text.assembler import Assembler
from .text.text import Text
from .workers.client import WorkerClient

_LONG = 20_000
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Service:
    """One model, served. `created` is in unix seconds, `hold_timeout` in seconds."""

    model: str
    created: int
    limits: ModelLimits
    text: Text
    worker: WorkerClient
    metrics: Metrics
    hold_timeout: float

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
        check_prompts(ask, self.limits)
        ask.params.sampling(max_tokens=ask.max_tokens or self.limits.max_context, vocab_size=self.limits.vocab_size, logprobs=ask.logprobs)
        return plan(ask, self.text, self.limits, await self.worker.dispatch.hold(self.hold_timeout))

    async def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        return [await offload(len(prompt), partial(self.text.encode, prompt)) for prompt in prompts]

    def check_request(self, request: GenerateRequest) -> None:
        request.check()
        self.check_model(request.model)


async def offload(size: int, work: Callable[[], _T]) -> _T:
    """Runs `work` beside the event loop if it handles so many characters that others would notice."""
    return await asyncio.to_thread(work) if size > _LONG else work()
