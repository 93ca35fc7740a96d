"""Clients that send too much, too slowly, strangely, or go away: over real sockets, each kind of it."""

import json
import random
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from artifact_stand_in import write_artifact
from patience import PATIENCE, wait_until
from serving_process import ServingProcess

from engine.server.http.body import MAX_BODY_BYTES
from engine.server.http.limits import MAX_BYTES_OF_BODIES, MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED

TEXT = {"prompt": "One, two", "max_tokens": 5, "temperature": 0}
"""Of five tokens, which the worker says back."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("server") / "artifact")


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact, api_key="k", request_timeout=PATIENCE) as server:  # however slowly this machine sends
        yield server.ready()
    assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def impatient(artifact: Path) -> Iterator[ServingProcess]:
    with ServingProcess(artifact, request_timeout=0.4, keep_alive=1) as server:
        yield server.ready()
    assert "Traceback" not in server.log()


def connected(server: ServingProcess) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port), timeout=PATIENCE)


def post(body: Any = TEXT, *headers: str, path: str = "/v1/completions", version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: localhost", "content-type: application/json", f"content-length: {len(content)}"]
    return "\r\n".join([*lines, "x-api-key: k", *headers, "", ""]).encode() + content


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            data = connection.recv(1 << 16)
        except ConnectionResetError:
            return received
        if not data:
            return received
        received += data


def send_all(connection: socket.socket, data: bytes) -> None:
    """As much as the server takes."""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def until(connection: socket.socket, *ends: bytes) -> bytes:
    """What comes, up to the last of `ends`, each after the one before it."""
    received, begin = b"", 0
    for end in ends:
        while (found := received.find(end, begin)) < 0:
            data = connection.recv(1 << 16)
            assert data, received
            received += data
        begin = found + len(end)
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


GET = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n"
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nx-api-key: k\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (GET, b"a: b\r\n" * (MAX_HEADERS + 1)),
        (GET, b"a: " + b"x" * 2 * MAX_HEAD_BYTES),
        (b"GET /", b"x" * 2 * MAX_HEAD_BYTES),
        (b"", b"G" * 2 * MAX_HEAD_BYTES),
        (b"", b"\r\n" * 2 * MAX_HEAD_BYTES),
    ],
    ids=["headers", "header", "path", "method", "empty lines"],
)
def test_a_head_that_does_not_end(server: ServingProcess, begin: bytes, more: bytes) -> None:
    with connected(server) as connection:
        send_all(connection, begin + more)
        answer = until_closed(connection)
    assert status(answer) in (400, 431)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] in ("head_too_large", "invalid_http")


@pytest.mark.parametrize("more", [b"5;" + b"x" * 4 * MAX_HEAD_BYTES, b"0\r\na: " + b"x" * 4 * MAX_HEAD_BYTES], ids=["extension", "trailer"])
def test_what_does_not_end_between_pieces_of_a_body(server: ServingProcess, more: bytes) -> None:
    with connected(server) as connection:
        send_all(connection, CHUNKED + more)
        assert status(until_closed(connection)) == 431


def test_who_has_no_key_takes_no_memory(server: ServingProcess) -> None:
    """Heads of all kinds without an end, bodies that nobody asked for, requests in one go: on 60 connections at once."""
    body = post({"prompt": "x" * 2**21}).replace(b"x-api-key: k", b"x-api-key: wrong")
    starts = [GET + b"a: " + b"x" * 2**21, GET + b"a: b\r\n" * 2**17, b"GET /" + b"x" * 2**21, body, (GET + b"\r\n") * 2**13]
    process = psutil.Process(server.process.pid)
    connections = [connected(server) for _ in range(60)]
    for connection in connections:
        connection.setblocking(False)
    before = process.memory_info().rss
    for _ in range(20):
        for index, connection in enumerate(connections):
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                connection.send(starts[index % len(starts)])
    assert server.http.get("/health").status_code == 200
    assert process.memory_info().rss - before < len(connections) * 256 * 2**10
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET /hea", GET, b"\r\n"], ids=["nothing", "line", "headers", "empty line"])
def test_a_head_that_does_not_come(impatient: ServingProcess, sent: bytes) -> None:
    with connected(impatient) as connection:
        connection.sendall(sent)
        assert status(until_closed(connection)) == 408


def test_a_body_that_does_not_come(impatient: ServingProcess) -> None:
    with connected(impatient) as connection:
        connection.sendall(post({"prompt": "x" * 1000})[:-500])
        answer = until_closed(connection)
    assert status(answer) == 408
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_a_body_that_comes_after_its_answer(impatient: ServingProcess) -> None:
    with connected(impatient) as connection:
        connection.sendall(post(TEXT, path="/v1/nothing").replace(b"content-length: ", b"content-length: 9"))
        assert status(until_closed(connection)) == 404


def test_an_answer_that_nobody_takes(impatient: ServingProcess) -> None:
    with connected(impatient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post({"prompt": "a b c d e f g " * 2**17}, path="/tokenize"))
        server = psutil.Process(impatient.process.pid)
        wait_until(
            lambda: impatient.http.get("/health").is_success and len(server.net_connections("tcp")) <= 2
        )  # the listener's, and this one


def test_a_connection_is_kept_and_then_closed(impatient: ServingProcess) -> None:
    with connected(impatient) as connection:
        for _ in range(2):
            connection.sendall(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert status(until(connection, b'{"version":"')) == 200
        assert b"HTTP" not in until_closed(connection)


def test_all_bodies_together(server: ServingProcess) -> None:
    """And what they take is given back, by answers and by hang-ups."""
    whole = post({"prompt": "x" * (MAX_BODY_BYTES - 100)}, path="/tokenize")
    for _ in range(2):
        with ExitStack() as stack:
            connections = [stack.enter_context(connected(server)) for _ in range(MAX_BYTES_OF_BODIES // MAX_BODY_BYTES + 1)]
            for connection in connections:
                send_all(connection, whole[:-2])
            refused, _, _ = select.select(connections, [], [], PATIENCE)  # whose piece is one too many: any of the last
            assert {status(connection.recv(1 << 16)) for connection in refused} == {503}
        for _ in range(20):
            assert server.http.post("/tokenize", json={"prompt": "x" * 10**5}).status_code == 200


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
def test_another_protocol_is_not_spoken(server: ServingProcess, protocol: str) -> None:
    request = post(TEXT, "connection: Upgrade, HTTP2-Settings", f"upgrade: {protocol}", "http2-settings: AAMAAABkAARAAAAAAAIAAAAA")
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(request)
            assert status(until(connection, b'"text":"One, two"', b"}}}")) == 200
        connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n")
        assert status(until_closed(connection)) == 405


def test_upgrades_come_in_pieces_and_without_a_body(server: ServingProcess) -> None:
    request = b"GET /version HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    with connected(server) as connection:
        for byte in request + post(TEXT, "connection: upgrade", "upgrade: h2c"):
            connection.sendall(bytes([byte]))
        answer = until(connection, b'"text":"One, two"')
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_http_1_0_knows_no_chunks(server: ServingProcess) -> None:
    with connected(server) as connection:
        connection.sendall(post({**TEXT, "stream": True}, version="1.0"))
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    events = body.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert "".join(json.loads(event[6:])["choices"][0]["text"] for event in events[:-2]) == "One, two"
    with connected(server) as connection:
        connection.sendall(post(TEXT, version="1.0"))
        assert b'"text":"One, two"' in until_closed(connection)


def test_a_stream_that_waits_is_not_silent(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True, stream_silence=0.2) as server, connected(server) as connection:
        connection.sendall(post({**TEXT, "stream": True}))
        answer = until(connection, *[b": waiting\n\n"] * 3)
        assert status(answer) == 200
        assert b"data:" not in answer
        server.open_gate()
        answer = until(connection, b"[DONE]")
        texts = [json.loads(line[6:])["choices"][0]["text"] for line in answer.splitlines() if line.startswith(b"data: {")]
        assert "".join(texts) == "One, two"
        refused = server.http.post("/v1/completions", json={**TEXT, "stream": True, "max_tokens": 9999})
        assert refused.status_code == 400, "an early error has its own status"


def test_an_error_after_the_wait_is_an_event(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True, stream_silence=0.2, hold_timeout=1.0) as server, connected(server) as connection:
        connection.sendall(post({**TEXT, "stream": True}))
        answer = until(connection, b"[DONE]")
        server.open_gate()
    assert b": waiting" in answer
    assert b'data: {"error":{"message":"the model is still loading' in answer


def test_pipelined_requests_are_answered_in_order(server: ServingProcess) -> None:
    with connected(server) as connection:
        count = MAX_PIPELINED + 1
        for most in range(1, count + 1):
            connection.sendall(post({**TEXT, "max_tokens": 1 + most % 4}))
        answers = until(connection, *[b'"total_tokens"'] * count)
    lengths = [int(each.split(b"}")[0].split(b",")[0]) for each in answers.split(b'"completion_tokens":')[1:]]
    assert lengths == [1 + most % 4 for most in range(1, count + 1)]


def test_too_many_pipelined_requests_end_the_connection_after_the_answers(server: ServingProcess) -> None:
    with connected(server) as connection:
        send_all(connection, post() * 3 * MAX_PIPELINED)
        answers = until_closed(connection)
    assert MAX_PIPELINED <= answers.count(b'"text":"One, two"') < 3 * MAX_PIPELINED
    assert b"connection: close" in answers


def test_nonsense_does_not_get_into_a_stream(server: ServingProcess) -> None:
    with connected(server) as connection:
        connection.sendall(post({"prompt": "One, two " * 20, "stream": True, "max_tokens": 100}))
        answer = connection.recv(1 << 16)
        connection.sendall(b"\x00nonsense\r\n\r\n")
        answer += until_closed(connection)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_hang_ups_at_any_time(server: ServingProcess) -> None:
    """With and without pipelining, by RST and by FIN: what is left is a server without a traceback (see the fixture) that serves."""
    choose = random.Random(5)
    requests = [
        post(),
        post({**TEXT, "stream": True}),
        post({"prompt": "a b " * 40, "stream": True, "max_tokens": 200}),
        GET + b"x-api-key: k\r\n\r\n",
        post(TEXT, "connection: upgrade", "upgrade: h2c"),
        b"nonsense\r\n\r\n",
    ]
    for _ in range(150):
        data = b"".join(choose.choices(requests, k=choose.randint(1, 5)))
        with connected(server) as connection:
            send_all(connection, data[: choose.randint(1, len(data))])
            if choose.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if choose.random() < 0.5:
                connection.settimeout(choose.random() / 50)
                with suppress(TimeoutError, ConnectionResetError):
                    connection.recv(1 << 16)
    assert server.http.post("/v1/completions", json=TEXT).json()["choices"][0]["text"] == "One, two"
