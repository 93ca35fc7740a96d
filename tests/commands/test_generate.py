"""`engine generate`, with a worker that says its prompt back."""

import io
import json
import sys
from pathlib import Path

import pytest

from engine.cli import main


def run(artifact: str, *arguments: str) -> int:
    return main(["generate", "--artifacts", artifact, "--temperature", "0", *arguments])


def test_one_prompt_gives_its_text_alone(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(artifact, "the lazy dog") == 0
    assert capsys.readouterr().out == "the lazy dog\n"


def test_several_prompts_are_told_apart(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(artifact, "One, two", "the fox") == 0
    assert capsys.readouterr().out == "> One, two\nOne, two\n\n> the fox\nthe fox\n\n"


def test_prompts_from_stdin_as_json(artifact: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the dog\n\nfish: é\n"))
    assert run(artifact, "--json", "--max-tokens", "2") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["prompt"] == "the dog"
    assert first["finish_reason"] == "length"
    assert first["completion_tokens"] == 2
    assert second["prompt"] == "fish: é"


def test_texts_and_conversations_in_one_file(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    conversation = [{"role": "user", "content": "the fox"}]
    file.write_text(json.dumps({"prompt": "the dog"}) + "\n" + json.dumps({"messages": conversation}) + "\n")
    assert run(artifact, "--file", str(file), "--json") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["text"] == "the dog"
    assert second["messages"] == conversation
    assert second["prompt_tokens"] > first["prompt_tokens"]


def test_chat_turns_prompts_into_messages(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(artifact, "--chat", "--json", "the fox") == 0
    assert json.loads(capsys.readouterr().out)["messages"] == [{"role": "user", "content": "the fox"}]


@pytest.mark.parametrize("format", [[], ["--json"]])
def test_what_cannot_be_completed_is_told_and_the_rest_goes_on(
    artifact: str, format: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    prompts = ['{"prompt": "the dog"}', '{"prompt": "\\ud800"}', json.dumps({"prompt": "fox " * 600}), '{"prompt": "the fox"}']
    file.write_text("\n".join(prompts))
    assert run(artifact, "--file", str(file), *format) == 9
    out, err = capsys.readouterr()
    assert "error: prompt 2: line 2 is not UTF-8 text" in err
    assert "error: prompt 3: the prompt has" in err
    assert err.count("hint: ") == 2
    if format:
        answers = [json.loads(line) for line in out.splitlines()]
        assert [answer.get("text") for answer in answers] == ["the dog", None, None, "the fox"]
        assert [answer.get("prompt", "")[:7] for answer in answers] == ["the dog", "", "fox fox", "the fox"]
        assert answers[1]["error"].startswith("line 2")
    else:
        assert out == "> the dog\nthe dog\n\n> the fox\nthe fox\n\n"


def test_nothing_that_can_be_completed(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(artifact, "fox " * 600, "dog " * 600) == 9
    assert capsys.readouterr().err.count("error: ") == 1


def test_arguments_that_are_no_text(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["caf\udce9"], ["the dog", "--stop", "\udcff"]):
        assert run(artifact, *arguments) == 2
        assert "is not UTF-8 text\nhint: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [("--top-p", "1.5", "top_p"), ("--temperature", "-1", "temperature"), ("--max-tokens", "100000", "max_tokens")],
)
def test_sampling_that_cannot_work(artifact: str, flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(artifact, "the dog", flag, value) == 9
    assert message in capsys.readouterr().err
