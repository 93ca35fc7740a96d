"""What the sampler remembers about one sequence."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...protocol import SamplingParams, TokenRules
from .grammar import Grammar

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: float32 differences divided by less would overflow."""


class TokenCounts:
    """How often each token occurred, as parallel arrays ready for indexed arithmetic."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._index: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._counts = np.empty(64, np.float32)
        for token in tokens:
            self.add(token)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct tokens, in order of first occurrence."""
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """Occurrences of each of `ids`."""
        return self._counts[: len(self._index)]

    def add(self, token: int) -> None:
        size = len(self._index)
        at = self._index.setdefault(token, size)
        if at < size:
            self._counts[at] += 1
            return
        if size == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
        self._ids[at] = token
        self._counts[at] = 1


class SamplingState:
    """Parameters of one sequence and what they need to know of its tokens.

    stop_ids: tokens that end the sequence, and may not be chosen before `params.min_tokens`.
    grammar: what the tokens must follow, at the place after those `generated`.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        generated: Sequence[int],
        stop_ids: frozenset[int],
        grammar: Grammar | None = None,
    ) -> None:
        self.params = params
        self.grammar = grammar
        self.index = len(generated)
        """Index, among the generated tokens, of the token to be chosen next."""
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self.greedy = params.temperature < GREEDY_BELOW
        self.stop_ids = stop_ids
        self.banned = np.fromiter(stop_ids, np.int64, len(stop_ids))
        rules = params.token_rules or TokenRules()
        self.biased, self.bias = np.frombuffer(rules.biased, np.int32), np.frombuffer(rules.bias, np.float32)
        self.allowed = None if rules.allowed is None else np.frombuffer(rules.allowed, np.int32)
        self._emitted = list(generated) if params.bad_words else []
        self.seen = TokenCounts([*prompt, *generated]) if params.repetition_penalty != 1.0 else None
        counted = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self.generated = TokenCounts(generated) if counted else None
        has_rules = params.token_rules is not None or bool(params.bad_words)
        self._always_adjusts = self.seen is not None or counted or has_rules or grammar is not None
        self.may_jump = grammar is not None and params.logprobs is None and not has_rules
        """Whether tokens may come without logits: not if these are asked for, or something else has a say in them."""
        self.takes_argmax = self._is_plain()
        """Whether the next token is just the index of the largest raw logit."""

    def completing(self) -> list[int]:
        """Tokens that would complete a bad word."""
        emitted = self._emitted
        return [word[-1] for word in self.params.bad_words if tuple(emitted[len(emitted) - len(word) + 1 :]) == word[:-1]]

    @property
    def bans_stop(self) -> bool:
        return self.index < self.params.min_tokens and len(self.banned) > 0

    @property
    def adjusts(self) -> bool:
        """Whether the next token's logits are changed before anything else."""
        return self._always_adjusts or self.bans_stop

    def is_plain_draw(self, index: int) -> bool:
        """Whether the token at `index` is drawn from the raw logits: with temperature, top-k, top-p and min-p, and nothing else."""
        bans_stop = index < self.params.min_tokens and len(self.banned) > 0
        return not (self.greedy or self._always_adjusts or bans_stop)

    def record(self, token: int) -> None:
        """The token at `index` has been chosen."""
        self.index += 1
        if self.index == self.params.min_tokens:
            self.takes_argmax = self._is_plain()
        if self.params.bad_words:
            self._emitted.append(token)
        if self.seen is not None:
            self.seen.add(token)
        if self.generated is not None:
            self.generated.add(token)
        if self.grammar is not None and token >= 0:
            self.grammar.accept(token)

    def jump(self, room: int) -> list[int]:
        """Tokens that must come next, since the grammar allows no others: recorded already, without any logits.

        At most `room`, and none that ends the sequence.
        """
        found: list[int] = []
        if self.grammar is None or self.bans_stop:
            return found
        while len(found) < room and (token := self.grammar.forced()) is not None and token not in self.stop_ids:
            self.record(token)
            found.append(token)
        return found

    def _is_plain(self) -> bool:
        return self.greedy and self.params.logprobs is None and not self.adjusts
