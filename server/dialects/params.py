"""How a request wants its tokens chosen: one set of fields for the HTTP API and for `LLM`."""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

import msgspec
from msgspec import Meta

from ...artifacts import SamplingDefaults
from ...errors import RequestError
from ...protocol import SamplingParams, TokenRules
from .structured import StructuredRequest

MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_LOGPROB_TOKENS = 256
MAX_BAD_WORDS = 256
_SEED_MASK = 2**63 - 1

Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
BadWord = Annotated[str, Meta(min_length=1, max_length=128)]
_T = TypeVar("_T")


class GenerationParams(StructuredRequest, kw_only=True, forbid_unknown_fields=True):
    """Sampling and stopping. None means the default, which is the one that OpenAI documents."""

    max_tokens: Natural | None = None
    """Default: of a chat what the context leaves, of completions 16. 0 computes the prompt only."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """Default: 1. 0 is greedy."""
    top_p: Probability | None = None
    """Default: 1, which is off."""
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """Default: 0, which is off, as is -1."""
    min_p: Probability | None = None
    """Default: 0, which is off."""
    seed: Int64 | None = None
    """Default: drawn at random. The same seed gives the same tokens at any load."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """Default: 1, which is off."""
    presence_penalty: Penalty | None = None
    """Default: 0."""
    frequency_penalty: Penalty | None = None
    """Default: 0."""
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    """Token id to what is added to its logit."""
    allowed_token_ids: Annotated[list[Natural], Meta(min_length=1)] | None = None
    """The only tokens that may be chosen: the end of text too only if it is among them."""
    bad_words: Annotated[list[BadWord], Meta(max_length=MAX_BAD_WORDS)] | None = None
    """The last token of such a text is not chosen where the answer ends with the ones before it, at the beginning of a text or after a
    space."""
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    """Ends the answer before the first of these texts; special tokens, such as `<|im_end|>`, count too."""
    include_stop_str_in_output: bool | None = None
    """Default: false. Whether the answer shows what stopped it."""
    stop_token_ids: Annotated[list[Natural], Meta(max_length=256)] | None = None
    """Tokens that end the answer, beside the model's own."""
    ignore_eos: bool | None = None
    """Default: false. Whether the answer goes on after the end of text."""
    min_tokens: Natural | None = None
    """Default: 0. Neither end of text nor a stop ends the answer before this many tokens."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Logprobs of the prompt's tokens, with so many alternatives each; not in a stream, and not on a GPU."""
    logprob_token_ids: Annotated[list[Natural], Meta(max_length=MAX_LOGPROB_TOKENS)] | None = None
    """Alternatives that are reported of each token instead of the most likely ones, after the chosen one; needs `logprobs`."""
    return_routed_experts: bool | None = None
    """Default: false. `routed_experts`: which experts each token chose in each layer; of an artifact that was built with
    `--capture-routes`."""
    routed_experts_start_len: Natural | None = None
    """Default: 0. Leaves the first so many tokens out of `routed_experts`; needs `return_routed_experts`."""
    skip_special_tokens: bool | None = None
    """Default: true. False shows special tokens in the text; `stop` finds them in any case."""

    def or_else(self, defaults: SamplingDefaults) -> Self:
        """These params, and the defaults for what they leave open."""
        given = {name: value for name, value in msgspec.structs.asdict(defaults).items() if hasattr(self, name)}
        return msgspec.structs.replace(self, **{name: value for name, value in given.items() if getattr(self, name) is None})

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, *, max_tokens: int, rules: TokenRules | None, choice: int = 0, **others: Any) -> SamplingParams:
        """What the worker is told. The n-th choice of a request gets its seed plus n.

        rules: those of `token_rules`. others: fields of SamplingParams that these params do not decide alone.
        A seed is always sent, so that a sequence goes on the same way if its worker must be replaced.
        """
        seed = secrets.randbits(63) if self.seed is None else self.seed + choice
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_or(self.temperature, 1.0),
            top_k=max(_or(self.top_k, 0), 0),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            seed=seed & _SEED_MASK,
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            token_rules=rules,
            logprob_token_ids=tuple(_or(self.logprob_token_ids, [])),
            stop_token_ids=tuple(_or(self.stop_token_ids, [])),
            ignore_eos=_or(self.ignore_eos, False),
            min_tokens=_or(self.min_tokens, 0),
            **others,
        )

    def token_rules(self) -> TokenRules | None:
        """What logit_bias and allowed_token_ids say. To be made once for all choices."""
        if not self.logit_bias and self.allowed_token_ids is None:
            return None
        return TokenRules.of(self.logit_bias or {}, self.allowed_token_ids)

    def check_min_tokens(self, max_tokens: int) -> None:
        """Raises RequestError if so many tokens cannot be generated."""
        if _or(self.min_tokens, 0) > max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than the {max_tokens} tokens that may be generated",
                param="min_tokens",
                hint="lower it, or raise max_tokens",
            )

    def check_logprobs(self, logprobs: int | None) -> None:
        """Raises RequestError if tokens are named of which no logprobs are asked for."""
        if self.logprob_token_ids and logprobs is None:
            raise RequestError("logprob_token_ids needs logprobs", param="logprob_token_ids", hint="set logprobs, or leave it out")

    def check_routed_experts(self, *, told: bool) -> None:
        """Raises RequestError if experts are asked for and the artifact does not tell them."""
        if self.return_routed_experts and not told:
            raise RequestError(
                "this artifact does not tell which experts tokens choose",
                param="return_routed_experts",
                code="unsupported_parameter",
                hint="serve one of a model with experts that was built with engine build --capture-routes, or leave it out",
            )
        if self.routed_experts_start_len is not None and not self.return_routed_experts:
            raise RequestError(
                "routed_experts_start_len needs return_routed_experts",
                param="routed_experts_start_len",
                hint="set return_routed_experts, or leave it out",
            )

    def check_token_ids(self, vocab_size: int) -> None:
        """Raises RequestError for token ids outside of the vocabulary."""
        for name in ("logit_bias", "allowed_token_ids", "stop_token_ids", "logprob_token_ids"):
            if wrong := [id for id in getattr(self, name) or () if not 0 <= id < vocab_size]:
                raise RequestError(
                    f"token {wrong[0]} is not in the vocabulary of {vocab_size} tokens",
                    param=name,
                    hint="POST /tokenize tells the tokens of a text",
                )


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def refuse_set_fields(request: msgspec.Struct, unsupported: Mapping[str, tuple[Any, ...]], instead: Mapping[str, str]) -> None:
    """Raises RequestError for a field with a value beyond null and those that ask for nothing special. instead: what to do, by field."""
    for name, harmless in unsupported.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            hint = instead.get(name, "leave it out")
            raise RequestError(f"{name} is not supported", param=name, code="unsupported_parameter", hint=hint)
