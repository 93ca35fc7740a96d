"""Log probabilities under softmax of a row of logits [V] float32 as the model gives it: natural logarithms."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...protocol import PromptLogprob, TokenLogprob
from .sample_row import largest


def token_logprob(row: NDArray[np.float32], token: int, count: int, named: Sequence[int] = ()) -> TokenLogprob:
    """Of a token and of the `count` most likely ones, or of it and those that are named. The row's largest value is finite."""
    log_total = _log_total(row)
    others = dict.fromkeys((token, *named)) if named else largest(row, count)
    return TokenLogprob(float(row[token]) - log_total, _logprobs(row, others, log_total))


def prompt_logprob(row: NDArray[np.float32], token: int, count: int) -> PromptLogprob | None:
    """The same of a prompt's token, with its rank. None if the row is not finite."""
    if not math.isfinite(row.max()):
        return None
    log_total = _log_total(row)
    value = row[token]
    rank = 1 + int(np.count_nonzero(row > value)) + int(np.count_nonzero(row[:token] == value))
    return PromptLogprob(float(value) - log_total, rank, _logprobs(row, largest(row, count), log_total))


def _log_total(row: NDArray[np.float32]) -> float:
    peak = float(row.max())
    return peak + math.log(float(np.exp(row - np.float32(peak)).sum()))


def _logprobs(row: NDArray[np.float32], ids: Iterable[int | np.intp], log_total: float) -> list[tuple[int, float]]:
    return [(int(id), float(row[id]) - log_total) for id in ids]
