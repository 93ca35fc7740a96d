"""Takes one subject through the phases."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from engine.bench.metrics import Summary, span, summarize
from engine.bench.processes import usage
from engine.bench.stream import Result
from engine.bench.workload import Request

from .environment import PeerError
from .load import EXPECTED, Load, Prompts
from .others import CpuTime, others_share
from .session import Room, Server, Session
from .subject import Subject

QUIET_SHARE = 0.03
FULL_SPEED = 0.85
_STARTS_LIMIT_S = 180.0
_ALONE = Room(sequences=1, tokens=2048)
_TOKENS_EACH = 512


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a phase. others: the share of the machine that others used meanwhile, 0 to 1. speed: the
    machine's right before or after, whichever was less, as a share of the best seen (`pace.py`)."""

    summary: Summary
    others: float
    speed: float


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from exec to the first token; others and speed as in `Run`."""

    first_token_s: float
    others: float
    speed: float


class Measured(msgspec.Struct, kw_only=True):
    """What one subject did. peak_memory is in bytes. error: why it has less than was asked for."""

    peer: str
    weights: str
    four_bits: bool
    same_file: bool
    setting: str
    over_http: bool
    answer: str = ""
    starts: list[Start] = msgspec.field(default_factory=list)
    single: Run | None = None
    ttft: Run | None = None
    throughput: dict[int, list[Run]] = msgspec.field(default_factory=dict)
    peak_memory: int = 0
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.peer} {self.weights}"


class Watched(Protocol):
    """Something measured while others may have used the machine, or its host."""

    @property
    def others(self) -> float: ...

    @property
    def speed(self) -> float: ...


def is_calm(taken: Watched) -> bool:
    return taken.others <= QUIET_SHARE and taken.speed >= FULL_SPEED


_Taken = TypeVar("_Taken", bound=Watched)


def quietest(take: Callable[[int], _Taken], attempts: int) -> _Taken:
    """The first of `take(0)`, `take(1)`, ... that others left alone, else the one that they disturbed least."""
    taken: list[_Taken] = []
    for attempt in range(attempts):
        taken.append(take(attempt))
        if is_calm(taken[-1]):
            break
    return min(taken, key=lambda one: one.others - one.speed)


def measure(subject: Subject, prompts: Prompts, load: Load, phases: Collection[str], logs: Path, pace: Callable[[], float]) -> Measured:
    """All `phases` of a subject. A failure ends up in `error`, beside what was measured before it.

    pace: the machine's speed at the moment, as a share of its best.
    """
    found = Measured(
        peer=subject.peer,
        weights=subject.weights,
        four_bits=subject.four_bits,
        same_file=subject.same_file,
        setting=subject.setting,
        over_http=isinstance(subject.open(_ALONE), Server),
    )
    try:
        _Measurement(subject, prompts, load, logs, found, pace).take(phases)
    except PeerError as error:
        found.error = str(error)
        say(f"  failed: {error}")
    return found


class _Measurement:
    def __init__(self, subject: Subject, prompts: Prompts, load: Load, logs: Path, found: Measured, pace: Callable[[], float]) -> None:
        self._subject = subject
        self._prompts = prompts
        self._load = load
        self._log = logs / f"{subject.name.replace(' ', '-')}.log"
        self._found = found
        self._pace = pace

    def take(self, phases: Collection[str]) -> None:
        self._alone(phases)
        if "startup" in phases:
            self._starts()
        if "throughput" in phases:
            for concurrency in self._load.concurrency:
                self._throughput(concurrency)

    def _alone(self, phases: Collection[str]) -> None:
        """The answer to a question, if one is asked, and what is measured with one request at a time."""
        with self._session(_ALONE) as session:
            if self._load.question:
                self._ask(session)
            if "single" in phases:
                self._found.single = quietest(lambda attempt: self._run(session, self._prompts.single(attempt), 1), self._load.attempts)
            if "ttft" in phases:
                self._found.ttft = quietest(lambda attempt: self._run(session, self._prompts.long(attempt), 1), self._load.attempts)

    def _ask(self, session: Session) -> None:
        server = self._subject.open(_ALONE)
        question = self._prompts.question(chat=isinstance(server, Server) and server.chat)
        (result,) = session.run([question], concurrency=1, time_limit_s=self._load.time_limit_s, exact=False)
        self._found.answer = result.text
        say(f"  answers {result.text!r}")
        if EXPECTED not in result.text:
            raise PeerError(f"answers {result.text!r} where {EXPECTED} is right: its speed means nothing ({result.error})")

    def _starts(self) -> None:
        begin = time.perf_counter()
        while len(self._found.starts) < self._load.starts and time.perf_counter() - begin < _STARTS_LIMIT_S:
            self._found.starts.append(quietest(lambda _: self._start(), self._load.attempts))

    def _start(self) -> Start:
        speed, before = self._pace(), CpuTime.now()
        with self._session(_ALONE) as session:
            others = others_share(before, CpuTime.now())
            first_token_s = session.first_token_s
        start = Start(first_token_s=first_token_s, others=others, speed=min(speed, self._pace()))
        say(f"  first token after {start.first_token_s:.2f} s, {_conditions(start)}")
        return start

    def _throughput(self, concurrency: int) -> None:
        with self._session(Room(concurrency, _TOKENS_EACH)) as session:
            session.run(self._prompts.warm_up(concurrency), concurrency=concurrency, time_limit_s=self._load.time_limit_s)
            self._found.throughput[concurrency] = [self._many(session, number, concurrency) for number in range(self._load.runs)]

    def _many(self, session: Session, number: int, concurrency: int) -> Run:
        first = number * self._load.attempts
        return quietest(lambda attempt: self._run(session, self._prompts.many(first + attempt), concurrency), self._load.attempts)

    def _run(self, session: Session, requests: Sequence[Request], concurrency: int) -> Run:
        speed, before = self._pace(), CpuTime.now()
        results = session.run(requests, concurrency=concurrency, time_limit_s=self._load.time_limit_s)
        others = others_share(before, CpuTime.now())
        _check(results)
        summary = summarize(results, span(results))
        run = Run(summary=summary, others=others, speed=min(speed, self._pace()))
        say(f"  {concurrency:2} at once: {_line(summary)}, {_conditions(run)}")
        return run

    @contextmanager
    def _session(self, room: Room) -> Iterator[Session]:
        session = self._subject.open(room).start(self._prompts.first(), self._log)
        try:
            yield session
            self._found.peak_memory = max(self._found.peak_memory, usage(session.pid).peak_rss_bytes)
        finally:
            session.stop()


def _check(results: Sequence[Result]) -> None:
    """A speed counts only if the work was done. Raises PeerError."""
    for result in results:
        if result.error is not None:
            raise PeerError(f"a request failed: {result.error}")
        if result.completed and result.output_tokens != result.wanted_tokens:
            raise PeerError(f"{result.output_tokens} tokens came where {result.wanted_tokens} were asked for")


def _line(summary: Summary) -> str:
    ttft = f"TTFT {summary.ttft.p50:.3f} s" if summary.ttft else "no answer was finished"
    tpot = f", TPOT {summary.tpot.p50 * 1000:.2f} ms" if summary.tpot else ""
    cut = f", {summary.cut} cut" if summary.cut else ""
    return f"{summary.output_tokens_per_s:.1f} tokens/s, {ttft}{tpot}{cut}"


def _conditions(taken: Watched) -> str:
    return f"others {taken.others:.1%}, machine at {taken.speed:.0%}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
