"""`engine serve` as a process of its own, started to be measured."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import WorkerError
from ..server.options import API_KEY_VARIABLE
from .processes import Usage, usage

LIMIT_S = 120.0
"""How long a server may take to listen, to load or to stop."""
_POLL_S = 0.005
_LAST_WORDS_S = 2.0
_LOG_LINES = 8
_PHASE = re.compile(r'engine_startup_phase_seconds\{phase="([^"]+)"\} (\S+)')


class EngineServer:
    """Starts on `with`, at once; `listening` and `ready` wait. Stops with SIGTERM at the end.

    Of what the checkpoint recommends for choosing tokens it knows nothing: what is measured is the model.
    flags: further arguments of engine serve. Raises WorkerError, with the end of its log, if it exits early.
    """

    def __init__(self, artifacts: Path, flags: Sequence[str] = ()) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        own = ["--artifacts", str(artifacts), "--port", str(self.port), "--generation-config", "none"]
        self._command = [sys.executable, "-P", "-m", "engine", "serve", *own, *flags]

    def __enter__(self) -> "EngineServer":
        self._log = tempfile.TemporaryFile()
        self.started = time.perf_counter()
        # A key that is meant for other servers would close this one to us.
        environment = {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=environment)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(LIMIT_S if error is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._process

    @property
    def pid(self) -> int:
        return self._process.pid

    def seconds(self) -> float:
        """Since it was started."""
        return time.perf_counter() - self.started

    def wait_until_listening(self) -> None:
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                self._check("open its port")
            else:
                return

    def wait_until_ready(self) -> None:
        self.wait_until_listening()
        while self._get("/health")[0] != 200:
            self._check("become ready")

    def wait_until_all_are_well(self, replicas: int) -> None:
        """Every worker serves."""
        self.wait_until_ready()
        while f"engine_replicas_ready {replicas}.0" not in self._get("/metrics")[1]:
            self._check(f"have {replicas} workers ready")

    def phases(self) -> dict[str, float]:
        """Seconds that each phase of the start took, by the server's own account."""
        return {name: float(seconds) for name, seconds in _PHASE.findall(self._get("/metrics")[1])}

    def usage(self) -> Usage:
        """What server and worker have used until now."""
        return usage(self._process.pid)

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def failed(self, what: str) -> WorkerError:
        """The error to raise when something did not happen, with the end of the server's log."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
        return WorkerError(
            f"engine serve did not {what}; it said:\n" + "\n".join(said), hint="start engine serve by hand with the same arguments"
        )

    def _check(self, what: str) -> None:
        """Wait a moment; the server must still be running then, and within its time."""
        if self._process.poll() is not None or self.seconds() > LIMIT_S:
            raise self.failed(what)
        time.sleep(_POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
