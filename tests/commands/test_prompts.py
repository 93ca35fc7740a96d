"""Where prompts come from."""

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
        read_prompts([], file, [])
    assert raised.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match=r"latin\.txt is not UTF-8 text: byte 3"):
        read_prompts([], tmp_path / "latin.txt", [])
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_prompts([], tmp_path / "missing.txt", [])
    with pytest.raises(UsageError, match="given twice"):
        read_prompts(["a"], tmp_path / "latin.txt", [])
