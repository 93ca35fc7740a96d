"""Requests that are known again, whoever asks, for a while."""

import hashlib
import time
from collections.abc import Callable

import msgspec

from ...protocol import Embed, Request

KEPT = 1024
KEPT_SECONDS = 600.0


class RecentRequests:
    """The last KEPT requests that were added, each for KEPT_SECONDS. They are told apart by all but their seeds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._added: dict[bytes, float] = {}

    def add(self, submit: Request) -> None:
        digest = _digest(submit)
        self._added.pop(digest, None)
        self._added[digest] = self._clock()
        while len(self._added) > KEPT:
            del self._added[next(iter(self._added))]

    def __contains__(self, submit: Request) -> bool:
        while self._added and self._clock() - next(iter(self._added.values())) >= KEPT_SECONDS:
            del self._added[next(iter(self._added))]
        return bool(self._added) and _digest(submit) in self._added  # on all but bad days there is nothing to digest for


def _digest(submit: Request) -> bytes:
    asked = submit.pair_start if isinstance(submit, Embed) else msgspec.structs.replace(submit.params, seed=None)
    return hashlib.sha256(msgspec.msgpack.encode((submit.prompt, asked))).digest()
