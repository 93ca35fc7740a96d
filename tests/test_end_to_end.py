"""`engine serve` on the real model, as users run it: the real client, real signals, and what the processes imported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from patience import PATIENCE, wait_until
from worker_of import worker_of

ENGINE = Path(sys.executable).with_name("engine")
FORBIDDEN = ("torch", "triton", "transformers", "engine.compiler", "engine.passes", "engine.models", "sympy")
MESSAGES = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


class Server:
    """A server whose two processes tell on stderr everything that they import."""

    def __init__(self, artifact: Path, log: Path, *flags: str) -> None:
        command = [str(ENGINE), "serve", "--artifacts", str(artifact), "--port", "0", *flags]
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"})
        url = self._wait_for(r"listening at (http://\S+?),")[1]
        self._wait_for(r"ready in")
        self.http = httpx.Client(base_url=url, timeout=PATIENCE)
        self.openai: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)

    def _wait_for(self, pattern: str) -> "re.Match[str]":
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if match := re.search(pattern, self.log.read_text(errors="replace")):
                return match
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in:\n{self.log.read_text(errors='replace')[-3000:]}")

    def imported(self) -> set[str]:
        """Names of all modules that either process has imported so far."""
        return {line.rpartition("|")[2].strip() for line in self.log.read_text().splitlines() if line.startswith("import time:")}

    def metric(self, name: str) -> float:
        for line in self.http.get("/metrics").text.splitlines():
            if line.split(" ")[0].partition("{")[0] == name:
                return float(line.split(" ")[-1])
        raise AssertionError(f"no metric {name}")

    def close(self) -> None:
        self.http.close()
        self.openai.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(smollm2, tmp_path_factory.mktemp("server") / "log", "--kv-memory", "256MB", "--max-num-seqs", "8")
    try:
        yield running
    finally:
        running.close()


def test_chat(server: Server) -> None:
    answer = server.openai.chat.completions.create(model="smollm2", messages=MESSAGES, temperature=0, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streaming_is_the_same_text(server: Server) -> None:
    whole = server.openai.chat.completions.create(model="smollm2", messages=MESSAGES, temperature=0, max_tokens=40)
    stream = server.openai.chat.completions.create(
        model="smollm2", messages=MESSAGES, temperature=0, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) > 3


def test_stop_n_seeds_and_logprobs(server: Server) -> None:
    body = {"model": "smollm2", "prompt": "The first ten numbers are", "max_tokens": 20, "temperature": 0}
    whole = server.openai.completions.create(**body).choices[0]
    assert whole.finish_reason == "length"
    word = whole.text[len(whole.text) // 2 :][:4]
    stopped = server.openai.completions.create(**body, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text.partition(word)[0]
    sampled = [
        server.openai.chat.completions.create(
            model="smollm2", messages=MESSAGES, n=3, seed=7, temperature=1.2, max_tokens=12, logprobs=True, top_logprobs=2
        )
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in answer.choices] for answer in sampled]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1
    first = sampled[0].choices[0].logprobs.content[0]
    assert first.logprob <= 0
    assert len(first.top_logprobs) == 2


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"model": "gpt-17"}, 404, "gpt-17"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "8192"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"temperature": 9}, 400, "temperature"),
    ],
)
def test_errors_are_openai_shaped(server: Server, change: dict[str, object], status: int, says: str) -> None:
    response = server.http.post("/v1/chat/completions", json={"model": "smollm2", "messages": MESSAGES, "max_tokens": 4} | change)
    assert response.status_code == status
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"]


def test_malformed_json(server: Server) -> None:
    response = server.http.post("/v1/chat/completions", content=b'{"model": ', headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


def test_a_client_that_hangs_up_frees_its_blocks(server: Server) -> None:
    body = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()  # dropping it would hang up already
        next(lines)
        wait_until(lambda: server.metric("engine_num_requests_running") == 1)
    wait_until(lambda: server.metric("engine_num_requests_running") == 0)
    wait_until(lambda: server.metric("engine_kv_cache_usage_ratio") == 0)


def test_more_requests_than_the_cache_holds(server: Server) -> None:
    """30 requests of up to 1,000 tokens, 8 at a time, over a cache of about 5,500 tokens: all are answered."""
    client = server.openai
    bodies = [{"model": "smollm2", "prompt": f"{index} " * (20 * index + 1), "max_tokens": 30, "temperature": 0} for index in range(30)]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda body: client.completions.create(**body, extra_body={"ignore_eos": True}), bodies))
    assert [answer.usage.completion_tokens for answer in answers] == [30] * 30
    alone = client.completions.create(**bodies[13], extra_body={"ignore_eos": True})
    assert answers[13].choices[0].text == alone.choices[0].text


def test_tokenize_and_back(server: Server) -> None:
    tokens = server.http.post("/tokenize", json={"prompt": "Grüße, 世界! 🙂"}).json()["tokens"]
    assert server.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "Grüße, 世界! 🙂"


def test_kill_9_of_the_worker_is_a_pause_for_the_client(server: Server) -> None:
    body = {"model": "smollm2", "prompt": "Count: 1, 2, 3,", "max_tokens": 120, "temperature": 0, "ignore_eos": True}
    expected = server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    text = ""
    with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        for count, line in enumerate(line for line in response.iter_lines() if line.startswith("data: {")):
            text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            if count == 10:
                worker_of(server.process.pid).kill()
    assert text == expected
    assert server.metric("engine_worker_restarts_total") == 1


def test_kill_9_in_the_midst_of_scoring_changes_no_score(server: Server) -> None:
    body = {"model": "smollm2", "prompt": "One, two, three. " * 60, "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 2}
    expected = server.http.post("/v1/completions", json=body).json()["choices"][0]
    text, token_logprobs, top_logprobs = "", [], []
    with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        worker_of(server.process.pid).kill()  # the head comes with the first scores
        for line in response.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                text += choice["text"]
                if choice["logprobs"] is not None:
                    token_logprobs += choice["logprobs"]["token_logprobs"]
                    top_logprobs += choice["logprobs"]["top_logprobs"]
    assert text == expected["text"]
    assert token_logprobs == expected["logprobs"]["token_logprobs"]
    assert top_logprobs == expected["logprobs"]["top_logprobs"]
    assert len(token_logprobs) > 300
    assert server.metric("engine_worker_restarts_total") == 2


def test_neither_process_ever_imported_torch_or_a_compiler(server: Server) -> None:
    """Last but one: after everything above, over both processes and the restarted worker."""
    imported = server.imported()
    assert {"numpy", "engine.runtime.executor", "engine.server.http.app"} <= imported
    bad = sorted(name for name in imported if any(name == root or name.startswith(f"{root}.") for root in FORBIDDEN))
    assert bad == []
    assert server.metric("engine_jit_compilations_total") == 0


def test_sigterm_drains_and_exits_0(server: Server) -> None:
    body = {"model": "smollm2", "prompt": "Once", "max_tokens": 60, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line.startswith("data: {")]
    assert json.loads(rest[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(timeout=PATIENCE) == 0
