"""From a step's logits to tokens. Every row is treated alone, so its token never depends on the batch.

What only takes the largest logit, the executor does, and an executor that can draws by itself what
takes no more than a draw. The rest is numpy and not torch: a row fits a core's cache, and torch's
parallel loops cost more here than they save.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...protocol import TokenLogprob
from .logit_rules import adjust
from .logprobs import token_logprob
from .philox import uniform
from .sample_row import sample_row
from .state import SamplingState

NOT_FINITE = "the model's output is not finite (NaN or infinite)"
NOTHING_ALLOWED = "the rules of the request leave no token to choose"


class Choice(NamedTuple):
    """The token chosen for one row, or why none could be (then `token` is -1). forced: tokens that follow it without being chosen.

    vector: what a request for a vector gets, which chooses no token.
    """

    token: int
    logprob: TokenLogprob | None = None
    error: str | None = None
    forced: Sequence[int] = ()
    vector: bytes = b""


class Logits(Protocol):
    """A step's logits [R, V] float32, valid until the next step. Where they lie elsewhere, a row is fetched when it is asked for."""

    def __getitem__(self, row: int, /) -> NDArray[np.float32]: ...


Choose = Callable[[Any, Sequence[int]], list[int]]


def sample(
    logits: Logits, rows: Sequence[int], states: Sequence[SamplingState], choose: Choose, drawn: Collection[int] = ()
) -> list[Choice]:
    """Choose the next token of each sequence; `record` it in the states afterwards.

    logits: [R, V]; rows: which row of it belongs to each of `states`; choose: as
    `StepExecutor.choose`; drawn: rows that the executor was told to draw. Nothing is modified.
    """
    triples = [(row, state, state.takes_argmax or row in drawn) for row, state in zip(rows, states, strict=True)]
    chosen = iter(choose(logits, [row for row, _, is_chosen in triples if is_chosen]))
    return [_take(next(chosen), logits, row, state) if is_chosen else _choose(logits[row], state) for row, state, is_chosen in triples]


def _take(token: int, logits: Logits, row: int, state: SamplingState) -> Choice:
    if token < 0:
        return Choice(-1, error=NOT_FINITE)
    return Choice(token) if state.params.logprobs is None else Choice(token, _logprob(logits[row], token, state))


def _choose(row: NDArray[np.float32], state: SamplingState) -> Choice:
    if not math.isfinite(row.max()):
        return Choice(-1, error=NOT_FINITE)
    if state.grammar is not None and state.grammar.error:
        return Choice(-1, error=state.grammar.error)
    params = state.params
    scaled = row
    if state.adjusts:
        scaled = row.copy()
        adjust(scaled, state)
        if not math.isfinite(scaled.max()):
            return Choice(-1, error=NOTHING_ALLOWED)
    if state.greedy:
        token = int(scaled.argmax())
    else:
        u = uniform(state.seed, state.index)
        token = sample_row(scaled, u, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
    return Choice(token, _logprob(row, token, state))


def _logprob(row: NDArray[np.float32], token: int, state: SamplingState) -> TokenLogprob | None:
    params = state.params
    return None if params.logprobs is None else token_logprob(row, token, params.logprobs, params.logprob_token_ids)
