"""One sequence's tokens to what a client reads: text, stop strings, logprobs, finish reason."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from ...errors import RequestError, split_hint
from ...protocol import Output, PromptLogprob, SamplingParams, Submit, TokenLogprob
from ..parsing.pieces import Content, OutputParser, Piece, joined
from .detokenizer import IncrementalDetokenizer
from .stop_checker import StopChecker
from .text import Text

Finish = Literal["stop", "length", "tool_calls"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `continues`: its text goes on from the prompt's, rather than starting anew.

    arrived: when the request came, on the clock of time.monotonic().
    lists_tokens: whether deltas say which tokens their text is made of; lists_end: and the token that ended it.
    shows_special: whether special tokens are part of the text.
    """

    id: str
    prompt: list[int]
    sampling: SamplingParams
    arrived: float
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    continues: bool = False
    lists_tokens: bool = True
    lists_end: bool = False
    shows_special: bool = False


class Token(msgspec.Struct, frozen=True):
    """A token that is part of the shown text, which it begins `offset` characters into."""

    id: int
    offset: int
    logprob: TokenLogprob | None


class Delta(msgspec.Struct, frozen=True):
    """What one step adds to a choice: text, and the tokens that begin in it. Either may be empty.

    pieces: what the text says, to be shown instead of it; None if no parser reads it.
    scores: of the prompt's tokens after the first, if they were asked for; all of them in the first delta.
    ids: of all tokens that the step brought, shown or not. routes: experts of each token, as `RoutesInfo` reads them, if they were asked
    for; all of them in the last delta.
    """

    text: str
    tokens: list[Token]
    finish_reason: Finish | None = None
    pieces: list[Piece] | None = None
    scores: list[PromptLogprob] = []
    ids: Sequence[int] = ()
    routes: Sequence[bytes] = ()

    @classmethod
    def joined(cls, deltas: Sequence["Delta"]) -> "Delta":
        """All deltas of a choice as one."""
        tokens = [token for delta in deltas for token in delta.tokens]
        pieces = None
        if deltas and deltas[0].pieces is not None:
            pieces = joined(piece for delta in deltas for piece in delta.pieces or ())
        scores = [score for delta in deltas for score in delta.scores]
        ids = [id for delta in deltas for id in delta.ids]
        routes = [route for delta in deltas for route in delta.routes]
        reason = deltas[-1].finish_reason if deltas else None
        return cls("".join(delta.text for delta in deltas), tokens, reason, pieces, scores, ids, routes)

    def all_pieces(self) -> list[Piece]:
        if self.pieces is not None:
            return self.pieces
        return [Content(self.text)] if self.text else []

    def content(self) -> str:
        """What of the text is for the reader."""
        return "".join(piece.text for piece in self.all_pieces() if isinstance(piece, Content))

    def only_content(self) -> str:
        """The content, if there is nothing but content and more to come."""
        if self.finish_reason is not None:
            return ""
        match self.pieces:
            case None:
                return self.text
            case [Content(text)]:
                return text
        return ""

    def parts(self) -> list["Delta"]:
        """One delta for each piece, the tokens with the first, and one for the reason to finish: some clients read nothing beside it."""
        pieces = self.all_pieces()
        if not pieces:
            return [self]
        texts = [piece.text if isinstance(piece, Content) else "" for piece in pieces]
        parts = [Delta(text, [], None, [piece]) for text, piece in zip(texts, pieces, strict=True)]
        parts[0] = Delta(texts[0], self.tokens, None, pieces[:1], ids=self.ids)
        return [*parts, Delta("", [], self.finish_reason, routes=self.routes)] if self.finish_reason is not None else parts


class Assembler:
    """Makes deltas from one sequence's outputs. Joined, their texts are the text and their tokens its tokens.

    generated: tokens produced so far, the ones not shown included; reasoning_tokens: of these, the ones of reasoning. routes: experts of
    the tokens computed so far, if they were asked for.
    parser: reads the text; `markers` are special tokens, and their texts, that it sees.
    """

    def __init__(self, text: Text, plan: Plan, parser: OutputParser | None = None, markers: Mapping[int, str] | None = None) -> None:
        self.plan = plan
        self._parser = parser
        shown = text.token_bytes.special_texts if plan.shows_special else markers or {}
        self._token_bytes, self._unseen = text.token_bytes, text.token_bytes.special - shown.keys()
        self._detokenizer = IncrementalDetokenizer(text.token_bytes, continues=plan.continues, shown=shown)
        self._stop_checker = StopChecker(plan.stops, include=plan.include_stop)
        self._is_plain = not plan.stops and not plan.lists_tokens and parser is None
        self._held: deque[Token] = deque()
        self._decoded = 0
        self._shown = 0
        self._scores: list[PromptLogprob] = []
        self.routes: list[bytes] = []
        self.generated = 0
        self.reasoning_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: Finish | None = None

    @property
    def stop_string(self) -> str | None:
        """The one that ended the text."""
        return self._stop_checker.found

    def submit(self) -> Submit:
        return Submit(self.plan.id, self.plan.prompt, self.plan.sampling)

    def score(self, scores: Sequence[PromptLogprob]) -> None:
        """The next ones of the prompt; the first delta has them all."""
        self._scores += scores

    def push(self, output: Output) -> Delta:
        """Raises RequestError if the worker gave the sequence up."""
        reason = output.finish_reason
        if reason == "abort":
            message, hint = split_hint(output.error or "the request was aborted\nhint: send it again")
            raise RequestError(message, status=400 if output.error else 503, code="aborted", hint=hint)
        self.routes += output.routed_experts
        if self.generated == 0:
            self.cached_tokens = output.cached_tokens
        if self._is_plain and reason is None and not self._scores:
            self.generated += len(output.tokens)
            return Delta("".join(map(self._detokenizer.push, output.tokens)), [], ids=output.tokens)
        texts: list[str] = []
        pieces: list[Piece] = []
        for i, token in enumerate(output.tokens):
            self.generated += 1
            ends = reason == "stop" and i == len(output.tokens) - 1
            if ends and not self.plan.include_stop:
                if self.plan.lists_end:
                    self._held.append(Token(token, self._decoded, output.logprobs[i] if output.logprobs else None))
                break
            shown, stopped = self._push_token(token, output.logprobs[i] if output.logprobs else None)
            texts.append(shown)
            pieces += self._parse(shown)
            if stopped:
                self.finish_reason = "stop"
                return self._delta(output.tokens[: i + 1], texts, pieces)
        if reason is not None:
            self.finish_reason = reason
            rest = self._stop_checker.flush()
            texts.append(rest)
            pieces += self._parser.push(rest) if self._parser else ()
        return self._delta(output.tokens, texts, pieces, everything=reason is not None)

    def _push_token(self, token: int, logprob: TokenLogprob | None) -> tuple[str, bool]:
        piece = self._detokenizer.push(token)
        if self.plan.lists_tokens:
            self._held.append(Token(token, self._decoded, logprob))
            self._decoded += len(piece)
        if self.generated <= self.plan.sampling.min_tokens:
            return piece, False
        if token in self._unseen:
            return self._stop_checker.push(self._token_bytes.name(token), seen=False)
        return self._stop_checker.push(piece)

    def _parse(self, text: str) -> list[Piece]:
        """What a token's text says."""
        if self._parser is None:
            return []
        self.reasoning_tokens += self._parser.reasoning
        return self._parser.push(text)

    def _delta(self, ids: Sequence[int], texts: list[str], pieces: list[Piece], *, everything: bool = False) -> Delta:
        text = "".join(texts)
        self._shown += len(text)
        tokens: list[Token] = []
        while self._held and (everything or self._held[0].offset < self._shown):
            tokens.append(self._held.popleft())
        scores, self._scores = self._scores, []
        routes = self.routes if self.finish_reason is not None else ()
        if self._parser is None:
            return Delta(text, tokens, self.finish_reason, scores=scores, ids=ids, routes=routes)
        if self.finish_reason is not None:
            pieces += self._parser.end()
        made_calls = self.finish_reason == "stop" and self._parser.calls > 0
        return Delta(text, tokens, "tool_calls" if made_calls else self.finish_reason, joined(pieces), scores, ids, routes)
