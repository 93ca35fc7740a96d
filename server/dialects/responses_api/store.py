"""Responses that were answered, for those who ask for them again or go on from them."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ....errors import RequestError
from .items import Item

MAX_RESPONSES = 10_000
MAX_BYTES = 64 * 2**20
MAX_SECONDS = 24 * 3600.0


class Stored(NamedTuple):
    """JSON: the response, and all items before its output, those of earlier responses with them."""

    response: bytes
    input: bytes

    def conversation(self) -> list[Item]:
        """All items up to the end of its output."""
        output: list[Item] = msgspec.json.decode(self.response)["output"]
        return [*self.input_items(), *output]

    def input_items(self) -> list[Item]:
        return msgspec.json.decode(self.input, type=list[Item])

    @property
    def size(self) -> int:
        return len(self.response) + len(self.input)


class ResponseStore:
    """In memory, bounded in number, bytes and age: the oldest is forgotten first. A restart forgets all."""

    def __init__(
        self,
        *,
        most: int = MAX_RESPONSES,
        most_bytes: int = MAX_BYTES,
        most_seconds: float = MAX_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._most_bytes, self._most_seconds = most, most_bytes, most_seconds
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, Stored]] = OrderedDict()
        self._bytes = 0

    def put(self, id: str, stored: Stored) -> None:
        self._entries[id] = (self._clock(), stored)
        self._bytes += stored.size
        self._forget_old()

    def get(self, id: str) -> Stored:
        """Raises RequestError (404) if there is no such response, or none any more."""
        self._forget_old()
        if id not in self._entries:
            raise RequestError(
                f"there is no response {id!r}",
                status=404,
                param="response_id",
                code="response_not_found",
                hint=f"it was not stored, deleted, or forgotten: {self._most} responses, {self._most_seconds / 3600:.0f} hours are kept",
            )
        return self._entries[id][1]

    def delete(self, id: str) -> None:
        """Raises what `get` raises."""
        self._bytes -= self.get(id).size
        del self._entries[id]

    def _forget_old(self) -> None:
        oldest = self._clock() - self._most_seconds
        while self._entries and (
            len(self._entries) > self._most or self._bytes > self._most_bytes or next(iter(self._entries.values()))[0] < oldest
        ):
            _, (_, stored) = self._entries.popitem(last=False)
            self._bytes -= stored.size
