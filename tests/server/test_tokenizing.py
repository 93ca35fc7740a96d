"""Texts of any length become the same tokens, in this process or in another one, which ends with who asked."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from artifact_stand_in import BOS, EOS, MAX_CONTEXT, MODEL, byte_level_tokenizer, write_artifact
from patience import PATIENCE, wait_until
from serving_process import ServingProcess

from engine.artifacts import PooledInfo, load_manifest
from engine.errors import RequestError
from engine.server import tokenizing
from engine.server.text.text import Text
from engine.server.text.token_jobs import Conversation, Job, Pairs, Prompts, WholeTexts
from engine.server.tokenizing import VERY_LONG, Tokenizing

TEXTS = ["", "the quick brown fox", "Ünïcode 🎉 東京", f"{BOS}user\na{EOS}" * 3]
JOBS: list[Job] = [
    Prompts(TEXTS, add_special_tokens=True, one_bos=True),
    Prompts(TEXTS, add_special_tokens=False, one_bos=False),
    Conversation(TEXTS[1:2], add_special_tokens=True),
    Conversation(TEXTS, add_special_tokens=False),
    WholeTexts(TEXTS, limit=None, keeps_end=False),
    WholeTexts(TEXTS, limit=5, keeps_end=True),
    Pairs([(TEXTS[1], TEXTS[2]), (TEXTS[3], TEXTS[0])], limit=None),
    Pairs([(TEXTS[1], TEXTS[2])], limit=7),
]
TOKENIZER = byte_level_tokenizer()
LONG = "the quick brown fox " * (2 * VERY_LONG // 20)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pooled = PooledInfo(task="embed", pooling="cls", size=8)
    return write_artifact(tmp_path_factory.mktemp("texts") / "artifact", pooled=pooled)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("server") / "artifact")) as server:
        yield server.ready()


def made(artifact: Path, digest: str | None = None) -> Tokenizing:
    return Tokenizing(Text.load(artifact / "tokenizer"), artifact, digest or load_manifest(artifact).digest)


@pytest.mark.parametrize("job", JOBS, ids=repr)
def test_another_process_finds_the_same_tokens(job: Job, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = asyncio.run(made(artifact).run(job))
    monkeypatch.setattr(tokenizing, "VERY_LONG", -1)
    elsewhere = asyncio.run(made(artifact).run(job))
    assert [(list(tokens.ids), tokens.pair_start) for tokens in elsewhere] == [(list(tokens.ids), tokens.pair_start) for tokens in here]
    assert all(type(tokens.ids) is list for tokens in here)
    assert not any(type(tokens.ids) is list for tokens in elsewhere)


def test_what_is_no_text_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "VERY_LONG", -1)
    with pytest.raises(RequestError, match="lone surrogate"):
        asyncio.run(made(artifact).run(Prompts(["\ud800"], add_special_tokens=True, one_bos=True)))


def test_an_artifact_that_was_replaced_is_not_read(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizing, "VERY_LONG", -1)
    with pytest.raises(RequestError, match="exited with code 6") as failed:
        asyncio.run(made(artifact, "0" * 64).run(JOBS[0]))
    assert (failed.value.status, failed.value.code) == (500, "tokenizing_failed")
    assert "digest" in capfd.readouterr().err


def test_a_process_that_cannot_be_started_is_said(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "VERY_LONG", -1)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(RequestError, match="cannot be started"):
        asyncio.run(made(artifact).run(JOBS[0]))


def processes_of(asking: int) -> list[psutil.Process]:
    """Those that tokenize for the process with this id; one that just ended is none."""
    found = []
    for child in psutil.Process(asking).children():
        with suppress(psutil.NoSuchProcess):
            found += [child] if tokenizing.MODULE in child.cmdline() else []
    return found


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def test_one_process_at_a_time_and_none_without_who_asked(artifact: Path) -> None:
    job = Prompts([LONG], add_special_tokens=True, one_bos=True)

    def mine() -> list[psutil.Process]:
        return processes_of(os.getpid())

    async def ask_twice() -> None:
        asked = made(artifact)
        first, second = asyncio.create_task(asked.run(job)), asyncio.create_task(asked.run(job))
        await until(mine)
        (one,) = mine()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not one.is_running()
        await until(mine)
        (two,) = mine()
        two.kill()
        with pytest.raises(RequestError, match="SIGKILL"):
            await second
        assert not mine()

    asyncio.run(ask_twice())


def test_the_tokens_of_a_long_text(server: ServingProcess) -> None:
    expected = TOKENIZER.encode(LONG)
    answer = server.http.post("/tokenize", json={"prompt": LONG, "return_token_strs": True}).json()
    assert answer == {"tokens": expected.ids, "token_strs": expected.tokens, "count": len(expected), "max_model_len": MAX_CONTEXT}


def test_long_texts_in_every_place(server: ServingProcess) -> None:
    """Counted, refused with their number of tokens, and cut to what the model takes."""
    messages = [{"role": "user", "content": LONG}]
    ids = len(server.http.post("/tokenize", json={"messages": messages}).json()["tokens"])
    assert server.http.post("/v1/messages/count_tokens", json={"messages": messages, "model": MODEL}).json() == {"input_tokens": ids}
    asked = {"messages": messages, "truncate_prompt_tokens": 5, "max_tokens": 2, "temperature": 0, "return_token_ids": True}
    answered = server.http.post("/v1/chat/completions", json=asked).json()
    assert len(answered["prompt_token_ids"]) == 5
    assert answered["choices"][0]["token_ids"] == answered["prompt_token_ids"][:2]
    too_long = server.http.post("/v1/completions", json={"prompt": LONG, "max_tokens": 1})
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
def test_nothing_goes_on_for_a_client_that_is_gone(server: ServingProcess, path: str) -> None:
    body = {"prompt": LONG * 5} if path == "/tokenize" else {"model": MODEL, "messages": [{"role": "user", "content": LONG * 5}]}

    async def ask_and_go() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            asking = asyncio.create_task(client.post(path, json=body))
            await until(lambda: processes_of(server.process.pid))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(ask_and_go())
    wait_until(lambda: not processes_of(server.process.pid))
    assert server.http.post("/tokenize", json={"prompt": "a"}).json()["count"] == 1


def test_it_ends_with_the_server(tmp_path: Path) -> None:
    with ServingProcess(write_artifact(tmp_path / "artifact")) as server:
        server.ready()

        async def ask() -> psutil.Process:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                asking = asyncio.create_task(client.post("/tokenize", json={"prompt": LONG * 5}))
                await until(lambda: processes_of(server.process.pid))
                (found,) = processes_of(server.process.pid)
                os.kill(server.process.pid, signal.SIGKILL)
                await asyncio.gather(asking, return_exceptions=True)
                return found

        found = asyncio.run(ask())
        wait_until(lambda: not found.is_running() or found.status() == psutil.STATUS_ZOMBIE)
