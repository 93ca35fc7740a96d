"""The `engine` command without its start: a process that has imported what push and pull need, and forks for each command.

Each command is a process of its own, which can be killed; only the second of imports is saved.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Started:
    """A command that runs. stdout, stderr: what it writes to."""

    arguments: list[str]
    pid: int
    stdout: Path
    stderr: Path


class ForkingEngine:
    """Runs commands while the body of a `with` does, in the environment given at the start."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def __enter__(self) -> "ForkingEngine":
        self._directory = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.communicate()
        self._directory.cleanup()

    def start(self, arguments: list[str], environment: dict[str, str]) -> Started:
        """environment: what is added to that of the start."""
        folder = Path(tempfile.mkdtemp(dir=self._directory.name))
        places = {"stdout": str(folder / "stdout"), "stderr": str(folder / "stderr")}
        pid = self._ask({"arguments": arguments, "environment": environment, **places})
        return Started(arguments, pid, folder / "stdout", folder / "stderr")

    def wait(self, started: Started) -> "subprocess.CompletedProcess[str]":
        code = self._ask({"wait": started.pid})
        return subprocess.CompletedProcess(started.arguments, code, started.stdout.read_text(), started.stderr.read_text())

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def _serve() -> None:
    for name in ("huggingface_hub.hf_api", "engine.cli", "engine.runtime.fit", "engine.shipping.pull"):
        import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            os._exit(_run(request))


def _run(request: dict[str, Any]) -> int:
    from engine.cli import main

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.update(request["environment"])
    try:
        return main(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
