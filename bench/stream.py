"""From the bytes of a streamed answer, with the times they came at, to what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import msgspec

from .workload import Request

_DATA = b"data:"
_DONE = b"[DONE]"
_SHOWN = 200


@dataclass(frozen=True)
class Result:
    """One request and what came of it. Times are seconds since the run began.

    prompt_tokens, output_tokens: as the server counted them, else as we did. start_s: when the
    request was sent, or was due in an open loop. token_times_s: the arrival of each output token;
    those that came in one piece have the same time. end_s: the end of the stream. error: why it
    failed (refused, broken off, not understood). cut: the run's time limit ended it. An answer
    has completed if it has neither. wanted_tokens: what was asked for, 0 if unknown.
    cached_tokens: prompt tokens that the server says it did not compute.
    """

    prompt_tokens: int
    output_tokens: int
    start_s: float
    token_times_s: list[float]
    end_s: float
    error: str | None = None
    text: str = ""
    cut: bool = False
    wanted_tokens: int = 0
    cached_tokens: int = 0

    @property
    def completed(self) -> bool:
        return self.error is None and not self.cut


@dataclass(slots=True)
class Exchange:
    """What a connection notes while the answer comes. `whole`: HTTP says that the body is complete."""

    start_s: float
    end_s: float | None = None
    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    whole: bool = False
    failure: str | None = None
    cut: bool = False


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


@dataclass(frozen=True)
class _Piece:
    """Text that arrived in one event, and how many tokens it is where the server says."""

    time_s: float
    text: str
    tokens: int | None


_decoder = msgspec.json.Decoder(_Event)


def read_exchange(exchange: Exchange, request: Request) -> Result:
    """What the answer holds. Reads what came, even of an answer that failed or was cut."""
    reader = _Reader()
    error = exchange.failure
    if exchange.status in (0, 200):
        error = reader.read(exchange.pieces) or error or (None if exchange.cut else reader.missing_end(exchange.whole))
    else:
        error = f"HTTP {exchange.status}: {_shown(b''.join(data for _, data in exchange.pieces))}"
    end_s = exchange.start_s if exchange.end_s is None else exchange.end_s
    usage = reader.usage or _Usage(prompt_tokens=request.prompt_tokens)
    times = token_times(reader.pieces, usage.completion_tokens, end_s)
    details = usage.prompt_tokens_details
    return Result(
        prompt_tokens=usage.prompt_tokens,
        output_tokens=len(times),
        start_s=exchange.start_s,
        token_times_s=times,
        end_s=end_s,
        error=error,
        text="".join(piece.text for piece in reader.pieces),
        cut=exchange.cut and error is None,
        wanted_tokens=request.max_tokens,
        cached_tokens=(details.cached_tokens if details else None) or 0,
    )


def token_times(pieces: Sequence[_Piece], total: int, end_s: float) -> list[float]:
    """The arrival of each token. total: the server's own count of them, 0 if it gave none.

    A piece holds as many tokens as the server says, else one. What is then missing to `total`
    goes to the pieces with the longest text, one each, again and again.
    """
    if not pieces:
        return [end_s] * total
    counts = [1 if piece.tokens is None else piece.tokens for piece in pieces]
    longest_first = sorted(range(len(pieces)), key=lambda index: -len(pieces[index].text))
    for index in islice(cycle(longest_first), max(0, total - sum(counts))):
        counts[index] += 1
    times = [piece.time_s for piece, count in zip(pieces, counts, strict=True) for _ in range(count)]
    return times[:total] if total else times


class _Reader:
    """Reads the events of a stream. `usage` is the last that the server gave."""

    def __init__(self) -> None:
        self.pieces: list[_Piece] = []
        self.usage: _Usage | None = None
        self._finished = False
        self._done = False
        self._counted: int | None = 0
        """Tokens so far, None once a piece came without the server's count."""

    def read(self, pieces: Sequence[tuple[float, bytes]]) -> str | None:
        """Take in the body. Returns what is wrong with it, None if nothing is."""
        for time_s, line in _lines(pieces):
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == _DONE:
                self._done = True
                continue
            try:
                event = _decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return f"not an event: {_shown(data)}"
            if event.error is not None:
                return f"the server says: {_shown(msgspec.json.encode(event.error))}"
            self._take(event, time_s)
        return None

    def missing_end(self, whole: bool) -> str | None:
        """What is missing at the end of the stream. `whole`: the HTTP body was complete."""
        ended = self._done or (whole and self._finished)
        return None if ended else "the stream ended before the answer did"

    def _take(self, event: _Event, time_s: float) -> None:
        self.usage = event.usage or self.usage
        for choice in event.choices or ():
            delta = choice.delta or _Delta()
            text = (choice.text or "") + (delta.content or "") + (delta.reasoning_content or "")
            self._finished = self._finished or choice.finish_reason is not None
            tokens = self._count(choice, event.usage)
            if text or tokens:
                self.pieces.append(_Piece(time_s, text, tokens))

    def _count(self, choice: _Choice, usage: _Usage | None) -> int | None:
        """How many tokens an event holds: by their ids, or by a count that the server gives with every event."""
        if choice.token_ids:
            tokens = len(choice.token_ids)
        elif usage is not None and self._counted is not None:
            tokens = usage.completion_tokens - self._counted
        else:
            self._counted = None
            return None
        self._counted = None if self._counted is None else self._counted + tokens
        return tokens


def _lines(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Each line with the time at which its end came. What follows the last line end is no event."""
    rest = b""
    for time_s, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield time_s, line


def _shown(data: bytes) -> str:
    text = data.decode(errors="replace").strip()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
