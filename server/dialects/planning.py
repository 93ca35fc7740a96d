"""From a validated request to the sequences that answer it."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from ...artifacts import Manifest, RoutesInfo, SamplingDefaults
from ...errors import RequestError
from ...protocol import Ready
from ..options import GenerationConfig
from ..parsing.pieces import Parsing, call_ids
from ..text.assembler import Assembler, Plan
from ..text.text import Text
from .params import GenerationParams


@dataclass(frozen=True)
class ModelLimits:
    """Sizes of the model, in tokens, how tokens are chosen where a request does not say, and which experts are told."""

    max_context: int
    vocab_size: int
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    routes: RoutesInfo | None = None

    @classmethod
    def of(cls, manifest: Manifest, generation_config: GenerationConfig) -> Self:
        """generation_config: "none" leaves out what the checkpoint recommends."""
        sampling = manifest.sampling if generation_config == "auto" else SamplingDefaults()
        return cls(manifest.model.max_context, manifest.model.vocab_size, sampling, manifest.routes)

    def room(self, max_tokens: int | None) -> int:
        """For a prompt before an answer of so many tokens, or of one at least."""
        return max(1, self.max_context - (1 if max_tokens is None else max_tokens))


@dataclass(frozen=True)
class Prompt:
    """Token ids. `continues`: the answer goes on from the prompt's text, as a chat's answer does not."""

    tokens: Sequence[int]
    continues: bool


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Prompts and what to make of each: `choices` answers of up to `max_tokens` (None: what the context leaves, `usual_tokens` at most).

    logprobs: alternatives per token, None for no logprobs; prompt_logprobs: of the prompt's.
    param, limit_param: the fields that errors name, of the prompt and of `max_tokens`; may_exceed: that may be more than there is room for.
    grammar: what each answer must follow, as SamplingParams has it. lists_tokens: whether the answer says which tokens it is made of;
    lists_end: and which one ended it. token_ids: whether it says which tokens came, shown or not.
    stream: whether each choice is told as it comes, so that it has to score the prompt by itself.
    parsing: how it is read, None if it is all text.
    """

    prompts: Sequence[Prompt]
    params: GenerationParams
    param: str
    max_tokens: int | None
    limit_param: str = "max_tokens"
    may_exceed: bool = False
    usual_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    lists_tokens: bool = False
    lists_end: bool = False
    token_ids: bool = False
    stream: bool = False
    parsing: Parsing | None = None
    choices: int = 1
    grammar: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def names_tokens(self) -> bool:
        """Whether the answer says more than text."""
        return self.logprobs is not None or self.token_ids

    @property
    def first_routed(self) -> int | None:
        """The first token whose experts are told; None if they are of no token."""
        return (self.params.routed_experts_start_len or 0) if self.params.return_routed_experts else None

    def routed_from(self, prompt: int, choice: int) -> int | None:
        """The same of one choice: unless each is told as it comes, the first tells those of the prompt's tokens for all."""
        if self.first_routed is None or choice == 0 or self.stream:
            return self.first_routed
        return max(self.first_routed, prompt)


def truncated(tokens: Sequence[int], count: int | None, room: int, *, right: bool) -> Sequence[int]:
    """The last `count` tokens of a prompt, or the first if the right side is what goes. -1: as many as there is `room` for; None: all."""
    if count is None:
        return tokens
    kept = room if count < 0 else count
    return tokens[:kept] if right else tokens[-kept:]


def check_prompts(ask: Ask, limits: ModelLimits) -> None:
    """What can be said before the worker is there. Raises RequestError."""
    ask.params.check_routed_experts(told=limits.routes is not None)
    for prompt in ask.prompts:
        if not prompt.tokens:
            raise RequestError("the prompt has no tokens", param=ask.param, hint="give it some text")
        _token_budget(ask, len(prompt.tokens), limits.max_context, "the model's context")
        if max(prompt.tokens) >= limits.vocab_size or min(prompt.tokens) < 0:
            wrong = next(token for token in prompt.tokens if not 0 <= token < limits.vocab_size)
            raise RequestError(
                f"the prompt has the token {wrong}, which is out of vocabulary: the model has {limits.vocab_size} tokens",
                param=ask.param,
                hint="POST /tokenize tells the tokens of a text",
            )


def plan(ask: Ask, text: Text, limits: ModelLimits, ready: Ready) -> list[Assembler]:
    """One assembler per prompt and choice, all choices of a prompt next to each other.

    The prompts have been checked. Raises RequestError.
    """
    ask = replace(ask, params=ask.params.or_else(limits.sampling), usual_tokens=ask.usual_tokens or limits.sampling.max_new_tokens)
    ask.params.check_token_ids(limits.vocab_size)
    ask.params.check_logprobs(ask.logprobs)
    rules, bad_words = ask.params.token_rules(), text.word_tokens(ask.params.bad_words or ())
    plans: list[Plan] = []
    for prompt in ask.prompts:
        budget = _budget(ask, len(prompt.tokens), limits, ready)
        ask.params.check_min_tokens(budget)
        tokens = list(prompt.tokens)
        for choice in range(ask.choices):
            sampling = ask.params.sampling(
                max_tokens=budget,
                rules=rules,
                bad_words=bad_words,
                logprobs=ask.logprobs,
                prompt_logprobs=ask.prompt_logprobs if choice == 0 or ask.stream else None,
                routed_from=ask.routed_from(len(tokens), choice),
                choice=choice,
                grammar=ask.grammar,
            )
            plans.append(
                Plan(
                    id=f"{ask.id}-{len(plans)}",
                    prompt=tokens,
                    sampling=sampling,
                    arrived=ask.arrived,
                    stops=ask.params.stops(),
                    include_stop=bool(ask.params.include_stop_str_in_output),
                    continues=prompt.continues and not text.token_bytes.special.issuperset(prompt.tokens),
                    lists_tokens=ask.lists_tokens or ask.logprobs is not None,
                    lists_end=ask.lists_end,
                    shows_special=ask.params.skip_special_tokens is False,
                )
            )
    if ask.parsing is None:
        return [Assembler(text, made) for made in plans]
    markers = text.special_tokens(ask.parsing.markers)
    return [Assembler(text, made, ask.parsing.begin(call_ids(made.id)), markers) for made in plans]


def _budget(ask: Ask, prompt: int, limits: ModelLimits, ready: Ready) -> int:
    if ready.max_tokens < limits.max_context:
        return _token_budget(ask, prompt, ready.max_tokens, "the KV cache (see --kv-memory)")
    return _token_budget(ask, prompt, limits.max_context, "the model's context")


def _token_budget(ask: Ask, prompt: int, room: int, what: str) -> int:
    """Tokens that may be generated where prompt and answer together must fit in `room`."""
    left = room - prompt
    least = 0 if ask.max_tokens == 0 else 1
    if left < least:
        raise RequestError(
            f"the prompt has {prompt} tokens, but {what} holds {room}, answer included",
            param=ask.param,
            code="context_length_exceeded",
            hint=f"shorten the prompt by at least {least - left} tokens",
        )
    if ask.max_tokens is not None and ask.max_tokens > left and not ask.may_exceed:
        raise RequestError(
            f"the prompt has {prompt} tokens and {ask.limit_param} is {ask.max_tokens}: {prompt + ask.max_tokens} in all, "
            f"but {what} holds {room}",
            param=ask.limit_param,
            code="context_length_exceeded",
            hint=f"lower {ask.limit_param} to {left} or less, or leave it out",
        )
    return min(left, (ask.usual_tokens or left) if ask.max_tokens is None else ask.max_tokens)
