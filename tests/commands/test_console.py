"""`engine generate` and `engine chat`, with a worker that says its prompt back."""

import functools
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import write_artifact
from checkout import ROOT

from engine import console
from engine.cli import main
from engine.console import read_prompts
from engine.errors import UsageError
from engine.server.llm import LLM

WORKER = ROOT / "tests" / "support" / "scripted_worker.py"


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    worker = (sys.executable, "-P", str(WORKER))
    monkeypatch.setattr(console, "LLM", functools.partial(LLM, worker_command=worker))
    return str(write_artifact(tmp_path / "artifact"))


def run(command: str, artifact: str, *arguments: str) -> int:
    return main([command, "--artifacts", artifact, "--temperature", "0", *arguments])


def test_one_prompt_gives_its_text_alone(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", artifact, "the lazy dog") == 0
    assert capsys.readouterr().out == "the lazy dog\n"


def test_several_prompts_are_told_apart(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", artifact, "One, two", "the fox") == 0
    assert capsys.readouterr().out == "> One, two\nOne, two\n\n> the fox\nthe fox\n\n"


def test_prompts_from_stdin_as_json(artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the dog\n\nfish: é\n"))
    assert run("generate", artifact, "--json", "--max-tokens", "2") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["prompt"] == "the dog"
    assert first["finish_reason"] == "length"
    assert first["completion_tokens"] == 2
    assert second["prompt"] == "fish: é"


def test_texts_and_conversations_in_one_file(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    conversation = [{"role": "user", "content": "the fox"}]
    file.write_text(json.dumps({"prompt": "the dog"}) + "\n" + json.dumps({"messages": conversation}) + "\n")
    assert run("generate", artifact, "--file", str(file), "--json") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["text"] == "the dog"
    assert second["messages"] == conversation
    assert second["prompt_tokens"] > first["prompt_tokens"]


def test_chat_turns_prompts_into_messages(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", artifact, "--chat", "--json", "the fox") == 0
    assert json.loads(capsys.readouterr().out)["messages"] == [{"role": "user", "content": "the fox"}]


def test_conversation_remembers_and_resets(artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    answer = console._answer

    def noting(llm: LLM, messages: Any, params: Any) -> str:
        seen.append(messages)
        return answer(llm, messages, params)

    monkeypatch.setattr(console, "_answer", noting)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n two \n/reset\nthree\n/exit\nfour\n"))
    assert run("chat", artifact, "--system", "Be brief.", "--max-tokens", "3") == 0
    roles = [[message["role"] for message in messages] for messages in seen]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert [messages[-1]["content"] for messages in seen] == ["one", "two", "three"]
    assert capsys.readouterr().out.count("\n") >= 3


def test_a_conversation_beyond_the_context(artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("fox " * 600 + "\n"))
    assert run("chat", artifact) == 9
    assert "hint: shorten the prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [("--top-p", "1.5", "top_p"), ("--temperature", "-1", "temperature"), ("--max-tokens", "100000", "max_tokens")],
)
def test_sampling_that_cannot_work(artifact: str, flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", artifact, "the dog", flag, value) == 9
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no prompts"),
        ("{", "line 1 is not JSON"),
        ('\n{"text": "x"}', "line 2 is not a prompt"),
        ('{"prompt": 3}', "line 1 is not a prompt"),
        ('{"messages": "hello"}', "line 1 is not a prompt"),
        ('{"messages": ["hello"]}', "line 1 is not a prompt"),
        ('{"prompt": "x", "messages": []}', "line 1 is not a prompt"),
        ('["prompt"]', "line 1 is not a prompt"),
    ],
)
def test_files_without_prompts(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_prompts([], file, [])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match=r"latin\.txt is not UTF-8 text: byte 3"):
        read_prompts([], tmp_path / "latin.txt", [])
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_prompts([], tmp_path / "missing.txt", [])
    with pytest.raises(UsageError, match="given twice"):
        read_prompts(["a"], tmp_path / "latin.txt", [])
