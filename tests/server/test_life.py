"""A server's life: loading, losing clients, losing its worker, being asked to stop."""

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from artifact_stand_in import MODEL, write_artifact
from patience import PATIENCE, wait_until
from serving_process import ServingProcess

from engine.errors import ArtifactError, UsageError
from engine.server.options import ServeOptions
from engine.server.serve import listen, serve

SLOW = ("--step", "0.005")
ENDLESS: dict[str, Any] = {"prompt": "a b c d e f g", "temperature": 0, "ignore_eos": True, "max_tokens": 200}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact")


@contextmanager
def streaming(server: ServingProcess, **fields: Any) -> Iterator[Iterator[str]]:
    """Data lines of a long stream, the first of which has been read."""
    with server.http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True, **fields}) as response:
        assert response.status_code == 200
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        next(lines)
        yield lines


def whole_text(server: ServingProcess, **fields: Any) -> str:
    answer = server.http.post("/v1/completions", json={**ENDLESS, **fields})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def metric(server: ServingProcess, name: str) -> float:
    (value,) = (line.split()[1] for line in server.http.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
    return float(value)


# --- loading --------------------------------------------------------------------------------


def test_health_tells_the_phase_and_then_that_all_is_well(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True) as server:
        server.line_with("weights 0.50 s")
        response = server.http.get("/health")
        assert response.status_code == 503
        assert response.headers["retry-after"]
        body = response.json()
        assert (body["status"], body["phase"], body["phases"]) == ("loading", "weights", {"imports": 0.25, "weights": 0.5})
        assert server.http.get("/v1/models").status_code == 200
        server.open_gate()
        server.ready()
        assert server.http.get("/health").json() == {"status": "ok"}


def test_requests_wait_for_a_worker_that_loads(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True) as server, ThreadPoolExecutor() as pool:
        asked = pool.submit(whole_text, server, max_tokens=2)
        while metric(server, "engine_num_requests_waiting") == 0:
            assert not asked.done()
        server.open_gate()
        assert asked.result() == "a b"


def test_wrong_requests_are_refused_while_loading(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True) as server:
        for wrong in ({"max_tokens": -1}, {"prompt": [5] * 600}, {"logit_bias": {"99999": 1}}):
            assert server.http.post("/v1/completions", json={"prompt": "x", **wrong}).status_code == 400
        server.open_gate()


def test_the_wait_has_an_end(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True, hold_timeout=0.0) as server:
        server.line_with("weights")
        response = server.http.post("/v1/completions", json={"prompt": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
        assert "/health" in response.json()["error"]["message"]
        assert response.headers["retry-after"]
        server.open_gate()


def test_a_worker_that_cannot_start_ends_the_server_with_its_error(artifact: Path) -> None:
    with ServingProcess(artifact, "--fail") as server:
        assert server.rest() == 7
    assert "error: made for another machine\nhint: build it here" in server.log()


def test_a_worker_that_keeps_dying_ends_the_server(artifact: Path) -> None:
    with ServingProcess(artifact, "--crash") as server:
        assert server.rest() == 8
    assert "the worker exited with code 3, 3 times within 60 s" in server.log()


def test_options_reach_the_worker(artifact: Path) -> None:
    with ServingProcess(artifact, threads=2, kv_memory=1 << 20, max_num_seqs=3, max_batch_tokens=64) as server:
        arguments = " ".join(server.event("started")["argv"])
    assert f"--artifacts {artifact} --max-num-seqs 3 --max-batch-tokens 64 --kv-memory 1048576 --threads 2" in arguments


def test_a_worker_that_hangs_is_noticed_and_one_that_has_nothing_to_do_is_not(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW) as server:
        server.ready()
        pid = server.event("started")["pid"]
        with streaming(server):
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: server.http.get("/health").status_code == 503)
            assert server.http.get("/health").json()["status"] == "stalled"
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: server.http.get("/health").status_code == 200)
        wait_until(lambda: metric(server, "engine_num_requests_running") == 0)
        assert server.http.get("/health").json() == {"status": "ok"}


# --- clients that go away -------------------------------------------------------------------


def test_a_stream_that_is_closed_is_aborted(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW) as server:
        server.ready()
        with streaming(server):
            id = server.event("submit")["id"]
        aborted = server.event("abort")
        assert (aborted["id"], aborted["known"]) == (id, True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_gives_up_before_the_first_byte_is_aborted(artifact: Path, stream: bool) -> None:
    with ServingProcess(artifact, "--step", "1" if stream else "0.005") as server:
        server.ready()
        body = httpx.Request("POST", server.url, json={**ENDLESS, "n": 2, "stream": stream}).read()
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body)
            submitted = {server.event("submit")["id"], server.event("submit")["id"]}
        assert {server.event("abort")["id"], server.event("abort")["id"]} == submitted


def test_a_stop_string_aborts_what_the_worker_would_go_on_with(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW) as server:
        assert whole_text(server.ready(), stop=" c") == "a b"
        assert server.event("abort")["known"]


def test_a_full_queue_says_so(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW, max_queue=1) as server:
        server.ready()
        with streaming(server, n=4), streaming(server):
            response = server.http.post("/v1/completions", json={"prompt": "x"})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
            assert metric(server, "engine_num_requests_running") + metric(server, "engine_num_requests_waiting") == 5
        for _ in range(5):
            server.event("abort")
        assert whole_text(server, max_tokens=1) == "a"


# --- workers that die -----------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_every_stream_goes_on(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW) as server:
        server.ready()
        expected = {temperature: whole_text(server, temperature=temperature, seed=5) for temperature in (0, 1)}
        usual = server.event("started")["pid"]
        client = server.openai
        streams = {
            temperature: client.completions.create(
                model=MODEL, prompt=ENDLESS["prompt"], max_tokens=200, temperature=temperature, seed=5, stream=True,
                extra_body={"ignore_eos": True},
            )
            for temperature in (0, 1)
        }  # fmt: skip
        texts = {temperature: next(stream).choices[0].text for temperature, stream in streams.items()}
        for _ in range(2):
            server.event("submit")
        os.kill(usual, signal.SIGKILL)
        for temperature, stream in streams.items():
            texts[temperature] += "".join(chunk.choices[0].text for chunk in stream)
        assert texts == expected
        assert server.event("started")["pid"] != usual
        assert server.event("submit")["generated"] > 0
        assert metric(server, "engine_worker_restarts_total") == 1
        assert metric(server, "engine_generation_tokens_total") >= 4 * 200
        assert server.http.get("/health").status_code == 200
    assert "was killed by SIGKILL" in server.log()


def test_health_and_requests_while_a_worker_is_replaced(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True) as server:
        pid = server.event("started")["pid"]
        server.open_gate()
        server.ready()
        os.kill(pid, signal.SIGKILL)
        server.event("started")
        response = server.http.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "restarting")
        server.open_gate()
        assert whole_text(server, max_tokens=2) == "a b"
        assert server.http.get("/health").status_code == 200


def test_a_request_that_kills_every_worker_gets_an_error(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW, "--crash-after", "3") as server:
        server.ready()
        with streaming(server) as lines:
            rest = list(lines)
        assert '"code":"worker_failed"' in rest[-2]
        assert rest[-1] == "[DONE]"
        assert server.rest() == 8
    assert "exited with code 4, 3 times" in server.log()


def test_a_poisonous_request_is_given_up_and_the_others_go_on(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW, "--poison", "7") as server:
        expected = whole_text(server.ready())
        with streaming(server) as lines:
            response = server.http.post("/v1/completions", json={"prompt": [7]})
            assert (response.status_code, response.json()["error"]["code"]) == (500, "worker_died")
            restarts = metric(server, "engine_worker_restarts_total")
            for seed in range(5):  # whoever asks it again
                response = server.http.post("/v1/completions", json={"prompt": [7], "seed": seed})
                assert (response.status_code, response.json()["error"]["code"]) == (422, "request_given_up")
            texts = [json.loads(line)["choices"][0]["text"] for line in lines if line != "[DONE]"]
        assert expected.endswith("".join(texts))
        assert metric(server, "engine_worker_restarts_total") == restarts == 4
        assert server.http.get("/health").status_code == 200


def test_many_poisonous_requests_at_once_cost_the_others_nothing(artifact: Path) -> None:
    poisons = [[7, number] for number in range(5)]
    with ServingProcess(artifact, *SLOW, "--poison", "7") as server, ThreadPoolExecutor(8) as pool:
        expected = whole_text(server.ready())
        others = [pool.submit(whole_text, server) for _ in range(3)]
        answers = list(pool.map(lambda prompt: server.http.post("/v1/completions", json={"prompt": prompt}), poisons))
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(500, "worker_died")}
        assert [other.result() for other in others] == [expected] * 3
        assert whole_text(server) == expected


def test_kills_from_outside_fail_no_request(artifact: Path) -> None:
    """Whenever they come: here the second one before the stream, which is alone, has got a token of the second worker."""
    with ServingProcess(artifact, "--step", "0.5") as server, ThreadPoolExecutor() as pool:
        asked = pool.submit(whole_text, server.ready(), max_tokens=3)
        for _ in range(2):
            pid = server.event("started")["pid"]
            server.event("submit")
            os.kill(pid, signal.SIGKILL)
        assert asked.result() == "a b c"


def test_kills_in_pairs_fail_no_stream(artifact: Path) -> None:
    """More of them than a worker may die within a minute, but those in between get on with their work."""
    with ServingProcess(artifact, *SLOW) as server, ThreadPoolExecutor() as pool:
        expected = whole_text(server.ready())
        for _ in range(3):
            asked = pool.submit(whole_text, server)
            for _ in range(2):
                os.kill(server.event("started")["pid"], signal.SIGKILL)
            assert asked.result() == expected


def test_a_log_that_nobody_reads_any_more_ends_nothing(artifact: Path) -> None:
    with ServingProcess(artifact, *SLOW) as server:
        expected = whole_text(server.ready())
        assert server.process.stderr is not None
        server.process.stderr.close()
        os.kill(server.event("started")["pid"], signal.SIGKILL)  # which the server wants to tell
        assert whole_text(server) == expected
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0


def test_the_worker_is_not_told_the_key(artifact: Path) -> None:
    environment = os.environ | {"ENGINE_API_KEY": "secret", "ENGINE_OTHER": "told"}
    with ServingProcess(artifact, environment=environment, api_key="secret") as server:
        pid = server.ready().event("started")["pid"]
        told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"ENGINE_OTHER=told" in told
        assert not any(b"secret" in variable for variable in told)


def test_a_worker_that_dies_of_everything_ends_the_server(artifact: Path) -> None:
    with ServingProcess(artifact, "--poison", "7") as server:
        server.ready()
        answers: list[int] = []
        while server.process.poll() is None and len(answers) < 40:
            with contextlib.suppress(httpx.HTTPError):
                answers.append(server.http.post("/v1/completions", json={"prompt": [7, len(answers)]}).status_code)
        assert server.rest() == 8
    assert answers[:9] == [500] * 9


def test_requests_that_wait_for_a_worker_are_counted_too(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True, max_queue=1) as server, ThreadPoolExecutor() as pool:
        asked = pool.submit(whole_text, server, max_tokens=2)
        while metric(server, "engine_num_requests_waiting") == 0:
            assert not asked.done()
        response = server.http.post("/v1/completions", json={"prompt": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        server.open_gate()
        assert asked.result() == "a b"


# --- stopping -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(artifact: Path, number: signal.Signals) -> None:
    with ServingProcess(artifact, *SLOW) as server:
        server.ready()
        with streaming(server) as lines:
            server.process.send_signal(number)
            server.line_with(rf"{number.name}: finishing 1 requests")
            refused = server.http.post("/v1/completions", json={"prompt": "x"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert server.http.get("/health").json()["status"] == "draining"
            rest = list(lines)
        assert rest[-1] == "[DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        server.event("drained")
        assert server.rest() == 0


def test_draining_has_an_end(artifact: Path) -> None:
    with ServingProcess(artifact, "--step", "0.05", drain_timeout=0.0) as server:
        server.ready()
        with streaming(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert '"code":"shutting_down"' in rest[-2]
        assert server.rest() == 0


def test_a_second_signal_stops_at_once(artifact: Path) -> None:
    with ServingProcess(artifact, "--step", "0.05") as server:
        server.ready()
        with streaming(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            server.line_with("SIGTERM")
            server.process.send_signal(signal.SIGINT)
            assert '"code":"shutting_down"' in list(lines)[-2]
        assert server.rest() == 128 + signal.SIGINT


def test_a_signal_while_loading(artifact: Path) -> None:
    with ServingProcess(artifact, gated=True) as server:
        server.line_with("weights")
        server.process.send_signal(signal.SIGTERM)
        assert server.rest() == 0


def test_a_worker_outlives_nothing(artifact: Path) -> None:
    """The server is killed: the worker reads the end of its socket."""
    with ServingProcess(artifact, *SLOW) as server:
        pid = server.ready().event("started")["pid"]
        descriptor = os.pidfd_open(pid)
        try:
            server.process.kill()
            assert select.select([descriptor], [], [], PATIENCE)[0] == [descriptor]
        finally:
            os.close(descriptor)


# --- starting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"port": 70000}, "there is no port 70000"),
        ({"host": "no.such.host.invalid"}, "the host 'no.such.host.invalid' is unknown"),
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
    ],
)
def test_an_address_that_cannot_be(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        serve(ServeOptions(artifacts=tmp_path, **options))
    assert caught.value.hint


def test_a_port_in_use(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(UsageError, match="Address already in use") as caught:
        listen("127.0.0.1", first.getsockname()[1])
    assert "--port" in str(caught.value)


def test_a_directory_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        serve(ServeOptions(artifacts=tmp_path, port=0, worker_command=("sleep", "60")))
