"""The load generator against real servers, and against one that breaks off, answers nonsense or never answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import uvloop
from artifact_stand_in import MODEL, byte_level_tokenizer, write_artifact
from misbehaving_server import HEADERS, LAST_CHUNK, MisbehavingServer, chunk, event, misbehaving
from serving_process import ServingProcess

from engine.bench import client
from engine.bench.connection import Server
from engine.bench.stream import Result
from engine.bench.workload import Request, random_requests
from engine.errors import UsageError

TOKENIZER = byte_level_tokenizer()
TOKEN = event(b'{"choices": [{"text": "x"}]}')
END = event(b'{"choices": [{"text": "", "finish_reason": "length"}]}') + event(b"[DONE]") + LAST_CHUNK
WHOLE = [HEADERS, TOKEN, TOKEN + END]
REQUESTS = [Request(f"prompt {index}", 2, 2) for index in range(6)]
_T = TypeVar("_T")


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[_T]], _T]:
    """The loop of `engine bench`, and the one of programs that use the client themselves."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def run_in_loop(work: Any) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work)

    return run_in_loop


async def drive(pieces: Sequence[bytes], *, hang_up: bool = False, **options: Any) -> tuple[list[Result], MisbehavingServer]:
    async with misbehaving(pieces, hang_up=hang_up) as (url, server):
        return await client.run(url, "m", REQUESTS, **options), server


# --- a real server --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("server") / "artifact")) as server:
        yield server.ready()


@pytest.mark.parametrize(
    "options", [{"concurrency": 1}, {"concurrency": 3}, {}, {"rate": 2000.0}, {"rate": 2000.0, "concurrency": 2}], ids=str
)
def test_every_token_of_every_answer_is_seen(server: ServingProcess, run: Any, options: dict[str, Any]) -> None:
    requests = random_requests(TOKENIZER, 8, (5, 30), (4, 24), seed=2)
    results = run(client.run(server.url, MODEL, requests, **options))
    assert len(results) == len(requests)
    for request, result in zip(requests, results, strict=True):
        assert result.error is None
        assert (result.prompt_tokens, result.output_tokens) == (request.prompt_tokens, request.max_tokens)
        # The worker says its prompt back, counted around.
        said = TOKENIZER.encode(request.prompt).ids * 6
        assert result.text == TOKENIZER.decode(said[: request.max_tokens])
        times = result.token_times_s
        assert len(times) == request.max_tokens
        assert result.start_s <= times[0]
        assert times == sorted(times)
        assert times[-1] <= result.end_s


def test_chat_and_a_url_with_its_version(server: ServingProcess, run: Any) -> None:
    (result,) = run(client.run(f"{server.url}/v1/", MODEL, [Request("The quick", 2, 12)], chat=True))
    assert (result.error, result.output_tokens) == (None, 12)
    assert result.prompt_tokens > 2
    assert result.cached_tokens == 2


def test_a_refused_request_says_why(server: ServingProcess, run: Any) -> None:
    (result,) = run(client.run(server.url, "another", REQUESTS[:1]))
    assert result.error.startswith("HTTP 404")
    assert "does not exist" in result.error


# --- what is sent ---------------------------------------------------------------------------


def test_what_a_request_asks_for(run: Any) -> None:
    _, server = run(drive(WHOLE, extra_body={"ignore_eos": None, "top_k": 1}, concurrency=1, api_key="secret"))
    body = json.loads(server.bodies[0])
    assert body == {
        "model": "m",
        "prompt": "prompt 0",
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 1,
    }
    assert server.heads[0].startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in server.heads[0]


def test_connections_are_used_again(run: Any) -> None:
    results, server = run(drive(WHOLE, concurrency=2))
    assert [result.error for result in results] == [None] * len(REQUESTS)
    assert (server.requests, server.connections) == (len(REQUESTS), 2)


def test_a_server_that_hangs_up_after_each_answer_is_called_again(run: Any) -> None:
    closing = HEADERS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    results, server = run(drive([closing, *WHOLE[1:]], hang_up=True, concurrency=1))
    assert [result.error for result in results] == [None] * len(REQUESTS)
    assert server.connections == len(REQUESTS)


def test_a_server_that_hangs_up_without_a_word_is_called_again(run: Any) -> None:
    """It closes a connection that another request is already on its way on."""
    results, server = run(drive(WHOLE, hang_up=True, concurrency=2))
    assert [result.error for result in results] == [None] * len(REQUESTS)
    assert server.requests == len(REQUESTS)


def test_an_answer_that_ends_with_its_connection(run: Any) -> None:
    """HTTP/1.0: no length, no chunks."""
    plain = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b'data: {"choices": [{"text": "x"}]}\n\ndata: [DONE]\n\n'
    results, _ = run(drive([plain], hang_up=True, concurrency=1))
    assert [(result.error, result.output_tokens) for result in results] == [(None, 1)] * len(REQUESTS)


@pytest.mark.parametrize(
    ("url", "address", "path"),
    [
        ("http://a:1", ("a", 1, False), "/v1/completions"),
        ("http://a:1/v1", ("a", 1, False), "/v1/completions"),
        ("https://a/prefix/v1/", ("a", 443, True), "/prefix/v1/completions"),
        ("http://[::1]:8", ("::1", 8, False), "/v1/completions"),
    ],
)
def test_addresses(url: str, address: tuple[str, int, bool], path: str) -> None:
    server = Server.parse(url, path="completions")
    assert (server.host, server.port, server.encrypted) == address
    assert server.path == path


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://a", "http://", "http://a:b", "http://a:99999"])
def test_what_is_not_an_address(url: str) -> None:
    with pytest.raises(UsageError, match="is not a server's address") as caught:
        Server.parse(url, path="completions")
    assert caught.value.hint == "write http://HOST:PORT"


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([], "the server closed the connection"),
        ([HEADERS], "the server closed the connection"),
        ([HEADERS, TOKEN], "the stream ended before the answer did"),
        ([HEADERS, TOKEN, LAST_CHUNK], "the stream ended before the answer did"),
        ([HEADERS, TOKEN, chunk(b"data: {")], "the stream ended before the answer did"),
        ([HEADERS, TOKEN, event(b'{"error": {"message": "no memory"}}'), END], 'the server says: {"message":"no memory"}'),
        ([HEADERS, TOKEN, event(b"{nonsense"), END], "not an event: {nonsense"),
        ([b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\noops"], "HTTP 500: oops"),
        ([b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"], "HTTP 503: "),
        ([b"220 mail.example ESMTP\r\n\r\n"], "the answer is not HTTP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failures_become_errors_of_each_request(run: Any, pieces: Sequence[bytes], error: str) -> None:
    results, server = run(drive(pieces, hang_up=True, concurrency=2))
    assert len(results) == server.requests == len(REQUESTS)
    for result in results:
        assert result.error is not None
        assert result.error.startswith(error)
        assert not result.completed


def test_a_server_that_wants_nobody(run: Any) -> None:
    """It closes every connection as soon as it is open; one request per connection, none hangs."""

    async def closed_at_once() -> list[Result]:
        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            return await client.run(f"http://{host}:{port}", "m", REQUESTS, concurrency=2, time_limit_s=30)

    results = run(closed_at_once())
    assert len(results) == len(REQUESTS)
    assert not any(result.cut for result in results)
    assert all(result.error is not None for result in results)


def test_nobody_listens(run: Any) -> None:
    async def nowhere() -> list[Result]:
        async with misbehaving([]) as (url, _):
            pass
        return await client.run(url, "m", REQUESTS, concurrency=2)

    results = run(nowhere())
    assert len(results) == len(REQUESTS)
    assert all(result.error is not None and result.error.startswith("cannot connect") for result in results)


# --- time limit -----------------------------------------------------------------------------


def test_what_never_ends_is_cut(run: Any) -> None:
    results, server = run(drive([HEADERS, TOKEN, TOKEN], concurrency=2, time_limit_s=0.5))
    assert [(result.cut, result.error, result.completed) for result in results] == [(True, None, False)] * 2
    assert [result.output_tokens for result in results] == [2, 2]
    assert all(result.end_s >= 0.5 for result in results)
    assert server.requests == 2


def test_an_open_loop_does_not_wait_for_answers(run: Any) -> None:
    results, server = run(drive([HEADERS, TOKEN], rate=1e4, time_limit_s=1.0))
    assert len(results) == server.requests == len(REQUESTS)
    assert all(result.cut for result in results)


def test_requests_that_wait_for_room_began_when_they_were_due(run: Any) -> None:
    results, _ = run(drive([HEADERS, TOKEN], rate=1e4, concurrency=1, time_limit_s=0.3))
    assert [result.cut for result in results] == [True]


def test_arrivals_are_drawn_from_the_seed(run: Any) -> None:
    def starts(seed: int) -> list[float]:
        results, _ = run(drive(WHOLE, rate=500.0, seed=seed))
        return [result.start_s for result in results]

    first = starts(1)
    assert starts(1) == first
    assert starts(2) != first
    assert first[0] == 0.0
    assert first == sorted(first)
