"""The worker's loop over a real socket, and how the process starts, fails and ends."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from fake_executor import FakeExecutor, solo

from engine.options.runtime import RuntimeOptions
from engine.protocol import (
    HEADER_BYTES,
    Abort,
    Drain,
    Failed,
    Output,
    Phase,
    SamplingParams,
    StepDone,
    Submit,
    ToServer,
    ToWorker,
    body_length,
    decode_to_server,
    encode,
)
from engine.runtime.core import EngineCore
from engine.runtime.process.channel import Channel
from engine.runtime.process.serving_loop import serve

PROMPT = [1, 2, 3]
GREEDY = SamplingParams(max_tokens=10, temperature=0.0)


class Parent:
    """The other end of a worker's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._stream = sock.makefile("rb")

    def send(self, *messages: ToWorker) -> None:
        self.socket.sendall(b"".join(encode(message) for message in messages))

    def read(self) -> ToServer | None:
        """The next message, None at the end of the stream."""
        header = self._stream.read(HEADER_BYTES)
        if not header:
            return None
        message: ToServer = decode_to_server(self._stream.read(body_length(header)))
        return message

    def outputs(self) -> Iterator[Output]:
        """Outputs until the worker closes its end."""
        while (message := self.read()) is not None:
            if isinstance(message, StepDone):
                yield from message.outputs

    def close(self) -> None:
        self._stream.close()
        self.socket.close()


class Loop:
    """`serve` over a fake executor, in a thread. ended: None while it runs, then what ended it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.parent = Parent(ours)
        self.core = EngineCore(FakeExecutor(num_blocks=32), RuntimeOptions())
        self.ended: str | None = None
        self._worker = theirs
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with self._worker:
            try:
                serve(self.core, Channel(self._worker), Path("no artifact"))
                self.ended = "drained"
            except EOFError:
                self.ended = "parent gone"
            except RuntimeError as error:
                self.ended = f"RuntimeError: {error}"

    def join(self) -> str | None:
        self.thread.join()
        self.parent.close()
        return self.ended


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    if loop.thread.is_alive():
        loop.parent.close()
    loop.join()


def test_requests_are_computed_and_drained(loop: Loop) -> None:
    loop.parent.send(Submit("a", PROMPT, GREEDY), Submit("b", [4], GREEDY), Drain())
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    for output in loop.parent.outputs():
        tokens[output.id] += output.tokens
    assert loop.join() == "drained"
    assert tokens == {"a": solo(PROMPT, GREEDY), "b": solo([4], GREEDY)}


def test_the_first_step_is_a_phase(loop: Loop) -> None:
    loop.parent.send(Submit("a", PROMPT, GREEDY), Drain())
    first, second = loop.parent.read(), loop.parent.read()
    assert isinstance(first, Phase)
    assert first.name == "first_step"
    assert isinstance(second, StepDone)
    assert [output.tokens for output in second.outputs] == [solo(PROMPT, GREEDY)[:1]]
    assert list(loop.parent.outputs())[-1].finish_reason == "length"


def test_a_request_arrives_while_another_is_computed(loop: Loop) -> None:
    endless = SamplingParams(max_tokens=60, temperature=0.0)
    loop.parent.send(Submit("long", PROMPT, endless))
    assert next(loop.parent.outputs()).id == "long"
    loop.parent.send(Submit("short", [5], SamplingParams(max_tokens=1, temperature=0.0)), Drain())
    ended = [output.id for output in loop.parent.outputs() if output.finish_reason]
    assert sorted(ended) == ["long", "short"]
    assert loop.join() == "drained"


def test_many_that_come_and_go_get_what_they_get_alone(loop: Loop) -> None:
    asked = {f"r{number}": Submit(f"r{number}", [number % 7 + 1] * (number % 11 + 1), sampled(number)) for number in range(40)}
    tokens: dict[str, list[int]] = {id: [] for id in asked}
    reasons: dict[str, str] = {}
    outputs = loop.parent.outputs()
    for number, submit in enumerate(asked.values()):
        loop.parent.send(submit)
        if number % 5 == 4:
            loop.parent.send(Abort(f"r{number - 2}"))
        if number % 8 == 7:
            collect(next(outputs), tokens, reasons)
    loop.parent.send(Drain())
    for output in outputs:
        collect(output, tokens, reasons)
    assert loop.join() == "drained"
    for id, submit in asked.items():
        alone = solo(submit.prompt, submit.params)
        assert tokens[id] == (alone if id in reasons else alone[: len(tokens[id])])
    assert len(reasons) >= 32, "all that were not aborted have ended"
    loop.core.check()


def sampled(number: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=number % 13 + 1, temperature=(0.0, 0.8)[number % 2], seed=number, frequency_penalty=(0.0, 0.5)[number % 3 > 1]
    )


def collect(output: Output, tokens: dict[str, list[int]], reasons: dict[str, str]) -> None:
    assert output.id not in reasons, "output after the end"
    tokens[output.id] += output.tokens
    if output.finish_reason is not None:
        reasons[output.id] = output.finish_reason


def test_a_step_that_fails_ends_the_loop(loop: Loop) -> None:
    loop.core._executor.step = lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))  # type: ignore[method-assign]
    loop.parent.send(Submit("a", PROMPT, GREEDY))
    assert loop.parent.read() is None
    assert loop.join() == "RuntimeError: broken"


def test_an_idle_worker_tells_that_an_abort_has_freed_its_blocks(loop: Loop) -> None:
    loop.parent.send(Submit("a", PROMPT, SamplingParams(max_tokens=60)), Abort("a"), Drain())
    messages = []
    while (message := loop.parent.read()) is not None:
        messages.append(message)
    assert loop.join() == "drained"
    assert isinstance(messages[-1], StepDone)
    assert messages[-1].stats.blocks_used == 0
    assert messages[-1].stats.running == 0


def test_bad_requests_are_answered_and_the_loop_goes_on(loop: Loop) -> None:
    body = msgspec.msgpack.encode({"type": "Submit", "id": "malformed", "prompt": [1], "params": {}})
    loop.parent.send(Submit("empty", [], GREEDY))
    loop.parent.socket.sendall(len(body).to_bytes(4, "little") + body)
    loop.parent.send(Submit("good", PROMPT, GREEDY), Drain())
    ended = {output.id: output for output in loop.parent.outputs() if output.finish_reason}
    assert loop.join() == "drained"
    assert ended.keys() == {"empty", "malformed", "good"}
    assert "empty" in (ended["empty"].error or "")
    assert "max_tokens" in (ended["malformed"].error or "")
    assert ended["good"].finish_reason == "length"


def test_the_loop_ends_with_its_parent(loop: Loop) -> None:
    loop.parent.send(Submit("a", PROMPT, SamplingParams(max_tokens=60)))
    loop.parent.read()
    loop.parent.close()
    assert loop.join() == "parent gone"


def start(*arguments: str) -> tuple[subprocess.Popen[bytes], Parent]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "engine.runtime.process.worker", "--fd", str(theirs.fileno()), *arguments]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    return process, Parent(ours)


def until_the_end(parent: Parent) -> list[ToServer]:
    messages = []
    while (message := parent.read()) is not None:
        messages.append(message)
    parent.close()
    return messages


@pytest.mark.parametrize(
    ("arguments", "error", "exit_code", "words"),
    [
        ((), "ArtifactError", 6, "no manifest.json"),
        (("--threads", "0"), "UsageError", 2, "threads is 0"),
        (("--max-num-seqs", "9", "--max-batch-tokens", "8"), "UsageError", 2, "max_batch_tokens"),
    ],
)
def test_a_worker_that_cannot_start_says_why(tmp_path: Path, arguments: tuple[str, ...], error: str, exit_code: int, words: str) -> None:
    process, parent = start("--artifacts", str(tmp_path), *arguments)
    *phases, failed = until_the_end(parent)
    assert process.wait() == exit_code
    assert isinstance(failed, Failed)
    assert (failed.error, failed.exit_code) == (error, exit_code)
    assert words in failed.message
    assert all(isinstance(phase, Phase) and phase.seconds >= 0 for phase in phases)


def test_a_worker_whose_parent_is_gone_ends_at_once(tmp_path: Path) -> None:
    process, parent = start("--artifacts", str(tmp_path))
    parent.close()
    assert process.wait() == 0
