"""A server in its own process, as users run it, with a scripted worker behind it."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import openai
from patience import PATIENCE

WORKER = Path(__file__).with_name("scripted_worker.py")
_SERVE = """
import json, pathlib, sys
from engine.errors import EngineError
from engine.server.options import ServeOptions
from engine.server.serve import serve
options = json.loads(sys.argv[1])
options["artifacts"] = pathlib.Path(options["artifacts"])
options["worker_command"] = options["worker_command"] and tuple(options["worker_command"])
options["verify_key"] = pathlib.Path(options["verify_key"]) if "verify_key" in options else None
try:
    code = serve(ServeOptions(**options))
except EngineError as error:
    print("error:", error, file=sys.stderr)
    code = error.exit_code
sys.exit(code)
"""


class ServingProcess:
    """Starts on `with`; every wait has an end.

    worker: flags of the scripted worker. Another worker is worker_command; None is the real one.
    launcher: what the command line begins with. environment: all there is of it, if given.
    """

    def __init__(
        self,
        artifacts: Path,
        *worker: str,
        gated: bool = False,
        launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._launcher, self._environment = launcher, environment
        self._directory = tempfile.TemporaryDirectory()
        folder = Path(self._directory.name)
        self._events = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._events.bind(str(folder / "events"))
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._gate = folder / "gate"
        os.mkfifo(self._gate)
        command = [sys.executable, "-P", str(WORKER), "--events", str(folder / "events"), *worker]
        if gated:
            command += ["--gate", str(self._gate)]
        self._options = {"artifacts": str(artifacts), "port": 0, "worker_command": command, **options}
        self.api_key = options.get("api_key")
        self.lines: list[str] = []

    def __enter__(self) -> "ServingProcess":
        command = [*self._launcher, sys.executable, "-P", "-W", "error", "-c", _SERVE, json.dumps(self._options)]
        self.process = subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE, text=True)
        self._listener = threading.Thread(target=self._hear, daemon=True)
        self._listener.start()
        try:
            self._connect()
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        return self

    def _connect(self) -> None:
        self.url = self.line_with(r"listening at (\S+),")[1]
        headers = {b"authorization": f"Bearer {self.api_key}".encode()} if self.api_key else {}
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, headers=headers)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key or "none", timeout=PATIENCE, max_retries=0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.http.close()
        self.openai.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.rest()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.rest()
            raise
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ender:
                ender.sendto(b"", str(Path(self._directory.name) / "events"))
            self._listener.join()
            self._events.close()
            self._directory.cleanup()

    def _hear(self) -> None:
        while data := self._events.recv(1 << 16):
            self._heard.put(json.loads(data))

    def event(self, kind: str) -> dict[str, Any]:
        """The worker's next event of this kind; others before it are dropped."""
        while True:
            event = self._heard.get(timeout=PATIENCE)
            if event["event"] == kind:
                return event

    def forget_events(self) -> None:
        """Those that came so far."""
        while not self._heard.empty():
            self._heard.get()

    def line_with(self, pattern: str) -> "re.Match[str]":
        """Reads the server's log up to a line that matches."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line like {pattern!r} in:\n{''.join(self.lines)}")

    def ready(self) -> "ServingProcess":
        self.line_with(r"ready in \S+ s at")
        return self

    def open_gate(self) -> None:
        with self._gate.open("wb") as gate:
            gate.write(b".")

    def rest(self) -> int:
        """Waits for the end; the exit code."""
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            _, rest = self.process.communicate(timeout=PATIENCE)
            self.lines.append(rest)
        return self.process.returncode

    def log(self) -> str:
        return "".join(self.lines)
