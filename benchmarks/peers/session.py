"""A peer that runs and answers requests: over HTTP, or as a library behind a runner in its own environment."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.bench import client
from engine.bench.stream import Result
from engine.bench.workload import Request

from .environment import PeerError

START_LIMIT_S = 600.0
_STOP_LIMIT_S = 20.0
_POLL_S = 0.005
_SHOWN_LINES = 15


@dataclass(frozen=True)
class Room:
    """What a session must hold: `sequences` at once, of up to `tokens` tokens each."""

    sequences: int
    tokens: int


class Session(Protocol):
    """A running peer. `first_token_s`: from exec to the first token of the first request."""

    first_token_s: float

    @property
    def pid(self) -> int:
        """The process that was started; all of the peer runs below it."""

    def run(self, requests: Sequence[Request], *, concurrency: int, time_limit_s: float, exact: bool = True) -> list[Result]:
        """Send requests, `concurrency` at once. exact: answers may not end before they have the tokens that were asked for."""

    def stop(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Server:
    """How to run a peer that speaks OpenAI's API. `command` has `{port}` where the port goes.

    body: fields added to every request, None takes one away; exact_body: further ones where answers must be
    exactly as long as asked. chat: it has only the chat endpoint.
    """

    command: tuple[str, ...]
    model: str = "model"
    variables: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    exact_body: Mapping[str, Any] = field(default_factory=dict)
    chat: bool = False

    def start(self, first: Request, log: Path) -> Session:
        """Start it and wait for the first token of `first`. Raises PeerError."""
        return _HttpSession(self, first, log)


@dataclass(frozen=True, kw_only=True)
class Library:
    """How to run a peer that is a library: the command of its runner, which speaks runners/answering.py."""

    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def start(self, first: Request, log: Path) -> Session:
        """Start it and wait for the first token of `first`. Raises PeerError."""
        return _LibrarySession(self, first, log)


class _Process:
    """A process in a group of its own, what it says on standard error (and output, if not wanted) in `log`."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path, *, talks: bool) -> None:
        self._log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        pipe = subprocess.PIPE if talks else None
        with log.open("wb") as file:
            self.started_s = time.perf_counter()
            self._process = subprocess.Popen(
                command,
                env={**inherited, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", **variables},
                stdin=pipe,
                stdout=pipe or file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One line of JSON each way. Raises PeerError if the process ends instead of answering."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise self.failure("ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def check(self) -> None:
        """Raises PeerError if it has ended or takes too long to start."""
        if self._process.poll() is not None:
            raise self.failure(f"exited with {self._process.returncode} before its first token")
        if time.perf_counter() - self.started_s > START_LIMIT_S:
            raise self.failure(f"no token within {START_LIMIT_S:.0f} s")

    def failure(self, what: str) -> PeerError:
        said = self._log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        return PeerError("\n".join([what, *said]))

    def stop(self) -> None:
        """End it and all that it started, kindly at first."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_LIMIT_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what it was told last and never read
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class _HttpSession:
    def __init__(self, server: Server, first: Request, log: Path) -> None:
        self._server = server
        port = _free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._process = _Process([part.replace("{port}", str(port)) for part in server.command], server.variables, log, talks=False)
        try:
            self._wait_for_port(port)
            self.first_token_s = self._wait_for_token(first) - self._process.started_s
        except BaseException:
            self._process.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, requests: Sequence[Request], *, concurrency: int, time_limit_s: float, exact: bool = True) -> list[Result]:
        exactness = self._server.exact_body if exact else {"ignore_eos": None}
        sent = client.run(
            self._url,
            self._server.model,
            requests,
            concurrency=concurrency,
            time_limit_s=time_limit_s,
            extra_body={**self._server.body, **exactness},
            chat=self._server.chat,
        )
        return asyncio.run(sent)

    def stop(self) -> None:
        self._process.stop()

    def _wait_for_port(self, port: int) -> None:
        while True:
            self._process.check()
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                time.sleep(_POLL_S)
            else:
                return

    def _wait_for_token(self, first: Request) -> float:
        """When the first token of `first` arrived. Servers that listen while they load refuse it at first."""
        while True:
            begin = time.perf_counter()
            (result,) = self.run([first], concurrency=1, time_limit_s=START_LIMIT_S)
            if result.token_times_s:
                return begin + result.token_times_s[0]
            self._process.check()
            if result.error is not None and not result.error.startswith(("HTTP 503", "cannot connect", "the server closed")):
                raise self._process.failure(result.error)
            time.sleep(_POLL_S)


class _LibrarySession:
    def __init__(self, library: Library, first: Request, log: Path) -> None:
        self._process = _Process(library.command, library.variables, log, talks=True)
        try:
            (result,) = self.run([first], concurrency=1, time_limit_s=START_LIMIT_S)
            if not result.token_times_s:
                raise self._process.failure(result.error or "no token")
        except BaseException:
            self._process.stop()
            raise
        self.first_token_s = self._begin_s + result.token_times_s[0] - self._process.started_s

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, requests: Sequence[Request], *, concurrency: int, time_limit_s: float, exact: bool = True) -> list[Result]:
        asked = [{"prompt": request.prompt, "max_tokens": request.max_tokens} for request in requests]
        answer = self._process.ask({"requests": asked, "concurrency": concurrency, "time_limit_s": time_limit_s, "exact": exact})
        if "error" in answer:
            raise self._process.failure(answer["error"])
        self._begin_s: float = answer["begin_s"]
        return [Result(**found) for found in answer["results"]]

    def stop(self) -> None:
        self._process.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
