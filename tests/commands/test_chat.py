"""`engine chat`, with a worker that says its prompt back."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import edit_manifest

from engine.cli import main
from engine.commands import chat
from engine.server.llm import LLM


def run(artifact: str, *arguments: str) -> int:
    return main(["chat", "--artifacts", artifact, "--temperature", "0", *arguments])


def test_conversation_remembers_and_resets(artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    answer = chat._answer

    def noting(llm: LLM, messages: Any, params: Any) -> str:
        seen.append(messages)
        return answer(llm, messages, params)

    monkeypatch.setattr(chat, "_answer", noting)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n two \n/reset\nthree\n/exit\nfour\n"))
    assert run(artifact, "--system", "Be brief.", "--max-tokens", "3") == 0
    roles = [[message["role"] for message in messages] for messages in seen]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert [messages[-1]["content"] for messages in seen] == ["one", "two", "three"]
    assert capsys.readouterr().out.count("\n") >= 3


@pytest.mark.parametrize(
    ("sampling", "flags", "temperature", "top_p"),
    [
        ({}, [], 0.7, 0.95),
        ({"temperature": 0.3}, [], None, 0.95),
        ({"temperature": 0.3}, ["--generation-config", "none"], 0.7, 0.95),
        ({"temperature": 0.3, "top_p": 0.8}, ["--temperature", "1"], 1.0, None),
    ],
)
def test_a_model_that_recommends_nothing_is_mild(
    sampling: dict[str, float],
    flags: list[str],
    temperature: float | None,
    top_p: float | None,
    artifact: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edit_manifest(Path(artifact), lambda content: content.update(sampling=sampling))
    seen: list[Any] = []

    def noting(llm: LLM, messages: Any, params: Any) -> str:
        seen.append(params)
        return ""

    monkeypatch.setattr(chat, "_answer", noting)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    assert main(["chat", "--artifacts", artifact, *flags]) == 0
    assert [(params.temperature, params.top_p) for params in seen] == [(temperature, top_p)]


def test_what_is_typed_may_be_no_text(artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert run(artifact) == 9
    assert "the text is not UTF-8: it has a lone surrogate, U+DCE9 at character" in capsys.readouterr().err
    assert run(artifact, "--system", "\udcff") == 2
    assert "--system: '\\udcff' is not UTF-8 text\nhint: " in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_a_prompt(
    artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for mark in (b"", b"\xef\xbb\xbf"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(mark + b"one\n"), encoding="utf-8"))
        assert run(artifact, "--max-tokens", "30") == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_a_conversation_beyond_the_context(artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("fox " * 600 + "\n"))
    assert run(artifact) == 9
    assert "hint: shorten the prompt" in capsys.readouterr().err
