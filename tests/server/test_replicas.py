"""The same answers from any number of workers, by real ones: tokens, logprobs and texts."""

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until
from serving_process import ServingProcess

from engine.bench.processes import family
from engine.cpus import usable_cpus

pytestmark = pytest.mark.skipif(len(usable_cpus()) < 2, reason="two workers want two CPUs")


def requests() -> list[dict[str, Any]]:
    """Forty, greedy and sampled, of which a third each shares the beginning of two blocks, of one, and none."""
    draw = random.Random(3)
    beginning = [draw.randrange(3, 250) for _ in range(128)]
    settings: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1, "seed": 5},
        {"temperature": 0.8, "seed": 6, "top_p": 0.9, "top_k": 20, "n": 2},
        {"temperature": 0, "repetition_penalty": 1.3, "logit_bias": {"7": 2}},
    ]
    found = []
    for number in range(40):
        own = [draw.randrange(3, 250) for _ in range(draw.randrange(1, 30))]
        prompt = [*beginning[: (0, 64, 128)[number % 3]], *own]
        found.append({"prompt": prompt, "max_tokens": 16, "logprobs": 2, "ignore_eos": True, **settings[number % len(settings)]})
    return found


def ask(server: ServingProcess, request: dict[str, Any]) -> Any:
    answer = server.http.post("/v1/completions", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def metric(server: ServingProcess, name: str) -> float:
    return next(float(line.rsplit(" ", 1)[1]) for line in server.http.get("/metrics").text.splitlines() if line.startswith(name))


def test_answers_do_not_depend_on_how_many_workers_there_are(tiny_artifact: Path) -> None:
    asked = requests()
    with ServingProcess(tiny_artifact, worker_command=None, verify_weights="off") as server:
        server.ready()
        expected = [ask(server, request) for request in asked]
    with ServingProcess(tiny_artifact, worker_command=None, replicas=2, verify_weights="off") as server, ThreadPoolExecutor(8) as pool:
        wait_until(lambda: server.http.get("/health").json().get("well") == 2)
        shares = [os.sched_getaffinity(worker) for worker in family(server.process.pid)[1:]]
        assert sorted(cpu for share in shares for cpu in share) == sorted(usable_cpus())
        assert list(pool.map(lambda request: ask(server, request), asked)) == expected
        assert metric(server, "engine_prefix_cache_hits_total") > 0
        answers = [pool.submit(ask, server, request) for request in asked]
        wait_until(lambda: metric(server, "engine_num_requests_running") > 1)
        os.kill(family(server.process.pid)[1], signal.SIGKILL)
        assert [answer.result() for answer in answers] == expected
        wait_until(lambda: metric(server, "engine_worker_restarts_total") == 1)
