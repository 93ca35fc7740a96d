"""What `LLM` returns."""

import time
from dataclasses import dataclass
from typing import Any

from ...artifacts import RoutesInfo
from ...protocol import PromptLogprob, TokenLogprob
from ..parsing.pieces import Call, Message
from .assembler import Assembler, Delta, Finish


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A generated text. `tokens` are those that the answer shows; `generated_tokens` counts the end of text too.

    reasoning, tool_calls: of `LLM.chat`, what the model wrote that is not part of the text.
    logprobs: one per token, if they were asked for; prompt_logprobs: one per token of the prompt, None for
    its first. routed_experts: if they were asked for, of each token that was computed and each layer with experts, those that it chose.
    time_to_first_token and seconds count from the call. finish_reason is None if generation was broken off.
    """

    text: str
    reasoning: str
    tool_calls: list[Call]
    tokens: list[int]
    finish_reason: Finish | None
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[PromptLogprob | None] | None
    routed_experts: list[list[list[int]]] | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    time_to_first_token: float
    seconds: float

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, as it is given back in a conversation that goes on."""
        functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in self.tool_calls]
        calls = [{"id": id, "type": "function", "function": function} for id, function in functions]
        message: dict[str, Any] = {"role": "assistant", "content": self.text or (None if calls else "")}
        return message | ({"reasoning": self.reasoning} if self.reasoning else {}) | ({"tool_calls": calls} if calls else {})

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 if there was no second."""
        later = self.seconds - self.time_to_first_token
        return (self.generated_tokens - 1) / later if self.generated_tokens > 1 and later > 0 else 0.0


class Collector:
    """Gathers one sequence's deltas into a Completion. routes: which experts are told of tokens, None if none are."""

    def __init__(self, assembler: Assembler, routes: RoutesInfo | None) -> None:
        self._assembler = assembler
        self._routes = routes if assembler.plan.sampling.routed_from is not None else None
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
        said = Message.of(whole.all_pieces())
        logprobs = [token.logprob for token in whole.tokens if token.logprob is not None]
        return Completion(
            text=said.content,
            reasoning=said.reasoning,
            tool_calls=said.calls,
            tokens=[token.id for token in whole.tokens],
            finish_reason=whole.finish_reason,
            logprobs=logprobs if plan.sampling.logprobs is not None else None,
            prompt_logprobs=[None, *whole.scores] if plan.sampling.prompt_logprobs is not None else None,
            routed_experts=None if self._routes is None else self._routes.nested(self._assembler.routes),
            prompt_tokens=len(plan.prompt),
            cached_tokens=self._assembler.cached_tokens,
            generated_tokens=self._assembler.generated,
            time_to_first_token=(self._first or self._last) - plan.arrived,
            seconds=self._last - plan.arrived,
        )
