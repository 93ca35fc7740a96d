"""The sequences that a worker computes: what is sent again after its death, who gets the outputs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ...errors import EngineError, RequestError
from ...protocol import Abort, Embed, Output, Request
from .life import WorkerLife
from .recent_requests import RecentRequests

MOST_GIVEN_UP_IN_A_ROW = 8
SEQUENCE_LOAD = 32
"""A sequence in flight counts as so many tokens of a prompt that have to be computed: it slows down all others of its worker."""


class Receiver(Protocol):
    """Where the outputs of a request's sequences go, as they arrive. Raises nothing."""

    def put(self, output: Output) -> None:
        """Called in the midst of all other requests' outputs: it must not take long."""

    def fail(self, error: EngineError) -> None:
        """There will be no more outputs."""


class Requests(Protocol):
    """What computes requests."""

    def generate(self, submits: Sequence[Request], receiver: Receiver) -> None:
        """Start these sequences, all or none. `receiver` gets their outputs until the last or until they are abandoned.

        Raises RequestError if there is no room or the server is going down.
        """

    def abandon(self, id: str) -> None:
        """No more outputs of this sequence. Unknown ids are ignored."""


@dataclass(slots=True)
class _Live:
    """A sequence in flight: enough to start it again where it stopped.

    uncached: tokens of its prompt that probably have to be computed. scored, routed: of how many tokens scores and experts have come.
    sent: whether the current worker has it. deaths: workers that died while they had it, since its last token. alone: those of them that
    had nothing else.
    """

    submit: Request
    receiver: Receiver
    uncached: int = 0
    received: list[int] = field(default_factory=list)
    scored: int = 0
    routed: int = 0
    sent: bool = False
    deaths: int = 0
    alone: int = 0

    def rest(self) -> Request:
        """What is left to be computed of it."""
        if isinstance(self.submit, Embed) or not (self.received or self.scored):
            return self.submit
        generated = self.submit.generated + self.received
        return msgspec.structs.replace(self.submit, generated=generated, scored=self.scored, routed=self.routed)

    @property
    def is_suspect(self) -> bool:
        return self.deaths > 1

    @property
    def is_guilty(self) -> bool:
        """Two deaths may come from outside, whoever had the worker; not so a third in a row, if two hit this sequence alone."""
        return self.deaths > 2 and self.alone > 1


class Dispatch:
    """Requests of one worker, over the lives of those that take its place. given_up: what ended every worker that had it.

    After a death everything goes on at once. What was there at two deaths without a token in between is suspect:
    the one with the most deaths is tried alone, then the others one after the other beside what is not suspect, each
    once the one before it has given a token or ended. Only what kills worker after worker by itself is given up.
    """

    def __init__(self, life: WorkerLife, given_up: RecentRequests | None = None) -> None:
        self._life = life
        self._live: dict[str, _Live] = {}
        self._tried: str | None = None
        self._alone = False
        self._given_up = RecentRequests() if given_up is None else given_up
        self._given_up_in_a_row = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def sequences(self) -> int:
        """Sequences running or waiting."""
        return len(self._live)

    @property
    def load(self) -> int:
        """What there is to be computed, in tokens of prompts."""
        return sum(SEQUENCE_LOAD + (0 if live.received else live.uncached) for live in self._live.values())

    def check(self, submits: Sequence[Request]) -> None:
        """Raises RequestError for what ended every worker that had it, and if the server is going down."""
        self._life.check_open()
        self._check_given_up(submits)

    def generate(self, submits: Sequence[Request], receiver: Receiver, uncached: Sequence[int] = ()) -> None:
        """See `Requests`. uncached: of each, how many tokens of the prompt probably have to be computed."""
        self.check(submits)
        if not self._live:
            self._life.progress.begin()
        for submit, tokens in zip(submits, uncached or [len(submit.prompt) for submit in submits], strict=True):
            live = self._live[submit.id] = _Live(submit, receiver, tokens)
            if self._life.serving and not self._alone:
                self._send(live)
        self._idle.clear()

    def abandon(self, id: str) -> None:
        """No more outputs of this sequence; the worker forgets it at once. Unknown ids are ignored."""
        if self._forget(id):
            self._life.send(Abort(id))

    def put(self, output: Output) -> None:
        """The worker has computed this."""
        live = self._live.get(output.id)
        if live is None:
            return
        live.received += output.tokens
        live.scored += len(output.prompt_logprobs)
        live.routed += len(output.routed_experts)
        live.deaths = live.alone = self._given_up_in_a_row = 0
        if output.finish_reason is not None:
            self._forget(output.id)
        elif output.id == self._tried:
            self._try_next()
        live.receiver.put(output)

    def send_all(self) -> None:
        """To a worker that has just become ready."""
        if any(live.is_suspect for live in self._live.values()):
            self._alone = True
            self._try_next()
        else:
            self._release()

    def worker_died(self) -> bool:
        """What it had is sent to the next one, unless that is what killed it.

        Returns whether a suspect explains the death, or will: not after many in a row were given up, and nothing else was done.
        """
        had = [live for live in self._live.values() if live.sent]
        for live in had:
            live.deaths += 1
            live.alone += len(had) == 1
            live.sent = False
        self._tried, self._alone = None, False
        suspicious = any(live.is_suspect for live in had)
        for live in [live for live in had if live.is_guilty]:
            self._given_up.add(live.submit)
            self._given_up_in_a_row += 1
            self._forget(live.submit.id)
            error = "the worker died every time it had this request"
            live.receiver.fail(RequestError(error, status=500, code="worker_died", hint="the server's log says how"))
        return suspicious and self._given_up_in_a_row <= MOST_GIVEN_UP_IN_A_ROW

    def fail_all(self, error: EngineError) -> None:
        """No sequence in flight gets any more outputs."""
        for id, live in list(self._live.items()):
            live.receiver.fail(error)
            self.abandon(id)

    async def until_idle(self) -> None:
        """Wait for the last sequence in flight to end."""
        await self._idle.wait()

    def _check_given_up(self, submits: Sequence[Request]) -> None:
        if any(submit in self._given_up for submit in submits):
            raise RequestError(
                "this request has ended every worker that had it",
                status=422,
                code="request_given_up",
                hint="ask something else, or again in ten minutes; the server's log says how they died",
            )

    def _forget(self, id: str) -> bool:
        known = self._live.pop(id, None) is not None
        if id == self._tried:
            self._try_next()
        if not self._live:
            self._idle.set()
        return known

    def _send(self, live: _Live) -> None:
        live.sent = True
        self._life.send(live.rest())

    def _try_next(self) -> None:
        """Send the worst of those suspects that have not been tried yet; only the first one is alone."""
        if self._alone and self._tried is not None:
            self._release()
        waiting = [live for live in self._live.values() if live.is_suspect and not live.sent]
        worst = max(reversed(waiting), key=lambda live: live.deaths, default=None)  # of equals the latest, for the others did well before
        self._tried = None if worst is None else worst.submit.id
        if worst is not None:
            self._send(worst)

    def _release(self) -> None:
        """Send what is not suspect."""
        self._alone = False
        for live in self._live.values():
            if not live.sent and not live.is_suspect:
                self._send(live)
