"""Where the prompts of `engine generate` come from: arguments, a file, or stdin."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError

Message = dict[str, Any]
Prompt = str | list[Message]


def read_prompts(arguments: Sequence[str], file: Path | None, stdin: Iterable[str]) -> list[Prompt]:
    """Prompts from the arguments, else from the file, else from stdin. Raises UsageError if there are none."""
    prompts: list[Prompt] = list(arguments)
    if arguments and file is not None:
        raise UsageError("prompts are given twice, as arguments and as --file", hint="leave one of the two out")
    if not arguments:
        lines = _lines_of(file) if file is not None else stdin
        parse = _from_json if file is not None and file.suffix == ".jsonl" else _from_text
        prompts = [parse(text, number) for number, line in enumerate(lines, 1) if (text := line.rstrip("\r\n")).strip()]
    if not prompts:
        raise UsageError(f"{file or 'the input'} has no prompts", hint='engine generate --artifacts DIR "a prompt"')
    return prompts


def _lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint="give --file a file that is there and readable") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: byte {error.start}", hint="convert it: iconv -f ENCODING -t UTF-8") from error


def _from_text(line: str, _number: int) -> Prompt:
    return line


_ENTRY = 'each line is {"prompt": "..."} or {"messages": [{"role": ..., "content": ...}, ...]}'


def _from_json(line: str, number: int) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UsageError(f"line {number} is not JSON: {error}", hint=_ENTRY) from error
    if isinstance(entry, dict) and len(entry.keys() & {"prompt", "messages"}) == 1:
        match entry.get("prompt", entry.get("messages")):
            case str() as text if "prompt" in entry:
                return text
            case list() as messages if "messages" in entry and all(isinstance(message, dict) for message in messages):
                return messages
    raise UsageError(f"line {number} is not a prompt", hint=_ENTRY)
