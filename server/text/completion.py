"""What `LLM` returns."""

import time
from dataclasses import dataclass

from ...protocol import PromptLogprob, TokenLogprob
from .assembler import Assembler, Delta, Finish


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A generated text. `tokens` are those that the text shows; `generated_tokens` counts the end of text too.

    logprobs: one per token, if they were asked for; prompt_logprobs: one per token of the prompt, None for
    its first. time_to_first_token and seconds count from the call. finish_reason is None if generation was broken off.
    """

    text: str
    tokens: list[int]
    finish_reason: Finish | None
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[PromptLogprob | None] | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    time_to_first_token: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 if there was no second."""
        later = self.seconds - self.time_to_first_token
        return (self.generated_tokens - 1) / later if self.generated_tokens > 1 and later > 0 else 0.0


class Collector:
    """Gathers one sequence's deltas into a Completion."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._deltas: list[Delta] = []
        self._first: float | None = None
        self._last = time.monotonic()

    def add(self, delta: Delta) -> None:
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._deltas.append(delta)

    def completion(self) -> Completion:
        plan = self._assembler.plan
        whole = Delta.joined(self._deltas)
        logprobs = [token.logprob for token in whole.tokens if token.logprob is not None]
        return Completion(
            text=whole.text,
            tokens=[token.id for token in whole.tokens],
            finish_reason=whole.finish_reason,
            logprobs=logprobs if plan.sampling.logprobs is not None else None,
            prompt_logprobs=[None, *whole.scores] if plan.sampling.prompt_logprobs is not None else None,
            prompt_tokens=len(plan.prompt),
            cached_tokens=self._assembler.cached_tokens,
            generated_tokens=self._assembler.generated,
            time_to_first_token=(self._first or self._last) - plan.arrived,
            seconds=self._last - plan.arrived,
        )
