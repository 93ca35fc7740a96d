"""Where prompts come from."""

import io
from pathlib import Path

import pytest

from engine.commands.prompts import read_prompts
from engine.errors import UsageError


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
    with pytest.raises(UsageError, match=message) as raised:
        read_prompts([], file, io.StringIO())
    assert raised.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="line 1 is not UTF-8 text"):
        read_prompts([], tmp_path / "latin.txt", io.StringIO())
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_prompts([], tmp_path / "missing.txt", io.StringIO())
    with pytest.raises(UsageError, match="given twice"):
        read_prompts(["a"], tmp_path / "latin.txt", io.StringIO())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", b"one\ncaf\xe9\n\nthree\n"),
        ("prompts.txt", b"\xef\xbb\xbfone\n\xed\xa0\x80\n\nthree"),
        ("prompts.jsonl", b'{"prompt": "one"}\n{"prompt": "caf\xe9"}\n\n{"prompt": "three"}'),
        ("prompts.jsonl", b'{"prompt": "one"}\n{"messages": [{"role": "user", "content": "\\ud83d"}]}\n\n{"prompt": "three"}'),
        ("prompts.jsonl", b'\xef\xbb\xbf{"prompt": "one"}\n{"text": "x"}\n\n{"prompt": "three"}'),
    ],
)
def test_a_line_that_is_no_prompt_leaves_the_others(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    read = [read_prompts([], file, io.StringIO())]
    if file.suffix == ".txt":
        read.append(read_prompts([], None, io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")))
    for first, second, third in read:
        assert (first, third) == ("one", "three")
        assert isinstance(second, UsageError)
        assert second.message.startswith("line 2 is not")
        assert second.hint
