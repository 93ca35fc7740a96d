"""One sequence's tokens to what a client reads: text, stop strings, logprobs, finish reason."""

from collections import deque
from collections.abc import Sequence
from typing import Literal

import msgspec

from ...errors import RequestError, split_hint
from ...protocol import Output, SamplingParams, Submit, TokenLogprob
from .detokenizer import IncrementalDetokenizer
from .stop_checker import StopChecker
from .text import Text

Finish = Literal["stop", "length"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `continues`: its text goes on from the prompt's, rather than starting anew.

    arrived: when the request came, on the clock of time.monotonic().
    lists_tokens: whether deltas say which tokens their text is made of.
    """

    id: str
    prompt: list[int]
    sampling: SamplingParams
    arrived: float
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    continues: bool = False
    lists_tokens: bool = True


class Token(msgspec.Struct, frozen=True):
    """A token that is part of the shown text, which it begins `offset` characters into."""

    id: int
    offset: int
    logprob: TokenLogprob | None


class Delta(msgspec.Struct, frozen=True):
    """What one step adds to a choice: text, and the tokens that begin in it. Either may be empty."""

    text: str
    tokens: list[Token]
    finish_reason: Finish | None = None

    @classmethod
    def joined(cls, deltas: Sequence["Delta"]) -> "Delta":
        """All deltas of a choice as one."""
        tokens = [token for delta in deltas for token in delta.tokens]
        return cls("".join(delta.text for delta in deltas), tokens, deltas[-1].finish_reason if deltas else None)


class Assembler:
    """Makes deltas from one sequence's outputs. Joined, their texts are the text and their tokens its tokens.

    generated: tokens produced so far, the ones not shown included.
    """

    def __init__(self, text: Text, plan: Plan) -> None:
        self.plan = plan
        self._detokenizer = IncrementalDetokenizer(text.token_bytes, continues=plan.continues)
        self._stop_checker = StopChecker(plan.stops, include=plan.include_stop)
        self._is_plain = not plan.stops and not plan.lists_tokens
        self._held: deque[Token] = deque()
        self._decoded = 0
        self._shown = 0
        self.generated = 0
        self.cached_tokens = 0
        self.finish_reason: Finish | None = None

    def submit(self) -> Submit:
        return Submit(self.plan.id, self.plan.prompt, self.plan.sampling)

    def push(self, output: Output) -> Delta:
        """Raises RequestError if the worker gave the sequence up."""
        reason = output.finish_reason
        if reason == "abort":
            message, hint = split_hint(output.error or "the request was aborted\nhint: send it again")
            raise RequestError(message, status=400 if output.error else 503, code="aborted", hint=hint)
        if self.generated == 0:
            self.cached_tokens = output.cached_tokens
        if self._is_plain and reason is None:
            self.generated += len(output.tokens)
            return Delta("".join(map(self._detokenizer.push, output.tokens)), [])
        pieces: list[str] = []
        for i, token in enumerate(output.tokens):
            self.generated += 1
            ends = reason == "stop" and i == len(output.tokens) - 1
            if ends and not self.plan.include_stop:
                break
            piece, stopped = self._push_token(token, output.logprobs[i] if output.logprobs else None)
            pieces.append(piece)
            if stopped:
                self.finish_reason = "stop"
                return self._delta(pieces)
        if reason is not None:
            self.finish_reason = reason
            pieces.append(self._stop_checker.flush())
        return self._delta(pieces, everything=reason is not None)

    def _push_token(self, token: int, logprob: TokenLogprob | None) -> tuple[str, bool]:
        piece = self._detokenizer.push(token)
        if self.plan.lists_tokens:
            self._held.append(Token(token, self._decoded, logprob))
            self._decoded += len(piece)
        if self.generated <= self.plan.sampling.min_tokens:
            return piece, False
        return self._stop_checker.push(piece)

    def _delta(self, pieces: list[str], *, everything: bool = False) -> Delta:
        text = "".join(pieces)
        self._shown += len(text)
        tokens: list[Token] = []
        while self._held and (everything or self._held[0].offset < self._shown):
            tokens.append(self._held.popleft())
        return Delta(text, tokens, self.finish_reason)
