"""The worker's tokens to what a client reads: text, stop strings, logprobs, finish reasons."""

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from typing import Literal

import msgspec

from ..errors import RequestError
from ..protocol import Output, SamplingParams, Submit, TokenLogprob
from .detokenizer import IncrementalDetokenizer
from .stop_checker import StopChecker
from .text import Text
from .worker_client import WorkerClient

Finish = Literal["stop", "length"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `continues`: its text goes on from the prompt's, rather than starting anew.

    arrived: when the request came, on the clock of time.monotonic().
    """

    id: str
    prompt: list[int]
    sampling: SamplingParams
    arrived: float
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    continues: bool = False


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


class Observer:
    """Is told how generation proceeds. This one does not care; see metrics for one that does."""

    def produced(self, plan: Plan, new: int) -> None:
        """`new` tokens came, at least one."""

    def finished(self, plan: Plan, generated: int, reason: str) -> None:
        """The sequence ended; `reason` is "stop", "length" or "abort"."""


class Assembler:
    """Makes deltas from one sequence's outputs. Joined, their texts are the text and their tokens its tokens.

    generated: tokens produced so far, the ones not shown included.
    """

    def __init__(self, text: Text, plan: Plan) -> None:
        self.plan = plan
        self._detokenizer = IncrementalDetokenizer(text.token_bytes, continues=plan.continues)
        self._stop_checker = StopChecker(plan.stops, include=plan.include_stop)
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
        if output.finish_reason == "abort":
            raise RequestError(output.error or "the request was aborted", status=400 if output.error else 503, code="aborted")
        if self.generated == 0:
            self.cached_tokens = output.cached_tokens
        pieces: list[str] = []
        for i, token in enumerate(output.tokens):
            self.generated += 1
            ends = output.finish_reason == "stop" and i == len(output.tokens) - 1
            if ends and not self.plan.include_stop:
                break
            piece, stopped = self._push_token(token, output.logprobs[i] if output.logprobs else None)
            pieces.append(piece)
            if stopped:
                self.finish_reason = "stop"
                return self._delta(pieces)
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            pieces.append(self._stop_checker.flush())
        return self._delta(pieces, everything=output.finish_reason is not None)

    def _push_token(self, token: int, logprob: TokenLogprob | None) -> tuple[str, bool]:
        piece = self._detokenizer.push(token)
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


async def generate(worker: WorkerClient, assemblers: Sequence[Assembler], observer: Observer) -> AsyncGenerator[tuple[int, Delta]]:
    """Run these sequences together; yields (index of the assembler, delta) as steps complete.

    Close it (`contextlib.aclosing`) to abort what has not finished. Raises RequestError if the
    server is overloaded or a sequence cannot be served.
    """
    by_id = {assembler.plan.id: (index, assembler) for index, assembler in enumerate(assemblers)}
    with closing(worker.generate([assembler.submit() for assembler in assemblers])) as outputs:
        try:
            async for output in outputs:
                index, assembler = by_id[output.id]
                before = assembler.generated
                delta = assembler.push(output)
                if assembler.generated > before:
                    observer.produced(assembler.plan, assembler.generated - before)
                if delta.finish_reason is not None:
                    outputs.abandon(output.id)
                    observer.finished(assembler.plan, assembler.generated, delta.finish_reason)
                yield index, delta
        finally:
            for assembler in assemblers:
                if assembler.finish_reason is None:
                    observer.finished(assembler.plan, assembler.generated, "abort")
