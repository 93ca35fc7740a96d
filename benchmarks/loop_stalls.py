"""How long a server's other clients wait while a large request is read: its event loop serves them all.

    python benchmarks/loop_stalls.py ARTIFACT [--streams N] [--rounds N] [--json FILE]

64 streams run; then one large request after the other comes, each of its own kind, and as long without any as the longest of them took:
in a longer time the longest wait is longer by chance.
Shown are, for each kind, the longest round trip of a small request (GET /version, one after the other), which
waits for the loop alone, and the longest time between two events of any stream, which also waits for
the model and for processors: medians and ranges over the rounds. Judges nothing.
"""

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from engine.bench.engine_server import EngineServer
from engine.bench.provenance import provenance

STREAMS = 64
QUIET = "nothing"
_MB = 2**20
_WORDS = "the quick brown fox jumps over the lazy dog and sleeps by the river. "


def large_requests() -> dict[str, tuple[str, bytes]]:
    """Path and body, by what is large about them."""
    text = (_WORDS * (8 * _MB // len(_WORDS) + 1))[: 8 * _MB]
    named: dict[str, tuple[str, Any]] = {
        "a prompt of 8 MB": ("/v1/completions", {"prompt": text, "max_tokens": 1}),
        "a message of 8 MB": ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 1}),
        "400 prompts of 19,900 characters": ("/v1/completions", {"prompt": [text[i : i + 19_900] for i in range(400)], "max_tokens": 1}),
        "1,000,000 prompts of one letter": ("/v1/completions", {"prompt": ["a"] * 1_000_000}),
        "300,000 empty messages": ("/v1/chat/completions", {"messages": [{}] * 300_000}),
        "4,000,000 lists as metadata": ("/v1/completions", {"prompt": "a", "metadata": [[]] * 4_000_000}),
        "8 MB to tokenize": ("/tokenize", {"prompt": text}),
        "8 MB to count": ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": text}]}),
        "8 MB to cut": ("/v1/completions", {"prompt": text, "max_tokens": 1, "truncate_prompt_tokens": 100}),
        "262,144 tokens to decode": ("/detokenize", {"tokens": [300] * 262_144}),
    }
    return {name: (path, msgspec.json.encode(body)) for name, (path, body) in named.items()}


def post(path: str, body: bytes) -> bytes:
    headers = ["host: localhost", "content-type: application/json", f"content-length: {len(body)}", "connection: close"]
    head = "\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""])
    return head.encode() + body


class Watch:
    """Times at which something came, in seconds of time.perf_counter(), from one thread."""

    def __init__(self, run: Callable[["Watch"], None]) -> None:
        self.times: list[float] = []
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=run, args=(self,), daemon=True)
        self._thread.start()

    def longest(self, begin: float, end: float) -> float:
        """Seconds without anything between the two times."""
        times = [begin, *(time for time in self.times if begin <= time < end), end]
        return max(later - earlier for earlier, later in pairwise(times))

    def end(self) -> None:
        self.stopped.set()
        self._thread.join()


def ask_on(port: int) -> Callable[[Watch], None]:
    """One small request after the other."""

    def run(watch: Watch) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while not watch.stopped.is_set():
                connection.sendall(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n")
                while b"}" not in connection.recv(4096):
                    pass
                watch.times.append(time.perf_counter())
                time.sleep(0.001)

    return run


def read_stream(port: int, number: int) -> Callable[[Watch], None]:
    """One stream after the other, none of which ends by itself soon."""
    body = {"prompt": f"{number} " * 8, "max_tokens": 4000, "ignore_eos": True, "stream": True, "temperature": 0}
    request = post("/v1/completions", msgspec.json.encode(body))

    def run(watch: Watch) -> None:
        while not watch.stopped.is_set():
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(request)
                while not watch.stopped.is_set() and connection.recv(1 << 16):
                    watch.times.append(time.perf_counter())

    return run


@contextmanager
def watched(port: int, streams: int) -> Iterator[tuple[Watch, list[Watch]]]:
    small, large = Watch(ask_on(port)), [Watch(read_stream(port, number)) for number in range(streams)]
    try:
        while any(len(watch.times) < 8 for watch in large):
            time.sleep(0.1)
        yield small, large
    finally:
        for watch in (small, *large):
            watch.end()


def send(port: int, path: str, body: bytes) -> int:
    """The status of the answer, once all of it is there."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(post(path, body))
        first = connection.recv(1 << 16)
        while connection.recv(1 << 20):
            pass
    return int(first.split(b" ", 2)[1])


def measure(port: int, streams: int, rounds: int) -> dict[str, dict[str, Any]]:
    requests = large_requests()
    found: dict[str, dict[str, Any]] = {name: {"status": None, "small_request_s": [], "stream_s": []} for name in (*requests, QUIET)}
    with watched(port, streams) as (small, large):
        for _ in range(rounds):
            longest = 0.0
            for name, one in found.items():
                begin = time.perf_counter()
                if name == QUIET:
                    time.sleep(longest)
                else:
                    one["status"] = send(port, *requests[name])
                    longest = max(longest, time.perf_counter() - begin)
                time.sleep(0.3)
                end = time.perf_counter()
                one["small_request_s"].append(small.longest(begin, end))
                one["stream_s"].append(max(watch.longest(begin, end) for watch in large))
    return found


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("while this comes", "status", "small request, longest, ms", "between two events of a stream, longest, ms")
    for name, one in found.items():
        table.add_row(name, str(one["status"] or ""), *(_spread(one[key]) for key in ("small_request_s", "stream_s")))
    Console().print(table)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ({min(seconds) * 1e3:.0f}-{max(seconds) * 1e3:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--streams", type=int, default=STREAMS, metavar="N", help=f"that run meanwhile (default: {STREAMS})")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each large request is sent (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    taken_on = msgspec.to_builtins(provenance(options.artifact))
    with EngineServer(options.artifact, ["--max-num-seqs", str(options.streams + 1)]) as server:
        server.wait_until_ready()
        found = measure(server.port, options.streams, options.rounds)
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps({"provenance": taken_on, "streams": options.streams, "stalls": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
