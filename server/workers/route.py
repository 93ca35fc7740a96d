"""Which of several workers computes a request: where its beginning is cached already, unless too much is waiting there."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

TOKENS = 64
"""Beginnings are known to multiples of so many."""
KEPT = 16_384
"""Beginnings that are remembered of each worker, those that were asked for least recently forgotten first: a million tokens."""


class Choice(NamedTuple):
    """A worker's number, and how many tokens of the prompt it probably has to compute."""

    worker: int
    uncached: int


class Route:
    """What each of `workers` workers was sent, which it may still have in its KV cache. What it was sent decides nothing but time:
    every worker gives the same answer."""

    def __init__(self, workers: int) -> None:
        self._sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(workers)]

    def choose(self, prompt: Sequence[int], loads: Sequence[float]) -> Choice:
        """The worker that will be done first, by what is uncached of the prompt and what it has to compute besides (`loads`, in tokens
        of prompts); of equals the first. It is remembered to have the prompt."""
        if len(loads) == 1:
            return Choice(0, len(prompt))
        beginnings = list(_beginnings(prompt))
        choices = [Choice(number, len(prompt) - self._cached(number, beginnings, len(prompt))) for number in range(len(loads))]
        best = min(choices, key=lambda choice: choice.uncached + loads[choice.worker])
        self._remember(best.worker, beginnings)
        return best

    def forget(self, worker: int) -> None:
        """It has begun anew, with nothing."""
        self._sent[worker].clear()

    def _cached(self, worker: int, beginnings: Sequence[int], tokens: int) -> int:
        sent = self._sent[worker]
        count = next((number for number, beginning in enumerate(beginnings) if beginning not in sent), len(beginnings))
        return min(count * TOKENS, tokens - 1)  # the last token is always computed

    def _remember(self, worker: int, beginnings: Sequence[int]) -> None:
        sent = self._sent[worker]
        for beginning in reversed(beginnings):  # of a prompt the end is forgotten first
            sent[beginning] = None
            sent.move_to_end(beginning)
        while len(sent) > KEPT:
            sent.popitem(last=False)


def _beginnings(prompt: Sequence[int]) -> Iterator[int]:
    """A number for each beginning of whole blocks. Two that are equal by chance cost time, and nothing else."""
    known = 0
    for end in range(TOKENS, len(prompt) + 1, TOKENS):
        known = hash((known, *prompt[end - TOKENS : end]))
        yield known
