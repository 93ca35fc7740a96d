"""Where the prompts of `engine generate` and `engine chat` come from: arguments, a file, or stdin."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import UsageError
from ..options.values import is_text

Message = dict[str, Any]
Prompt = str | list[Message]

_BYTE_ORDER_MARK = "\ufeff"


def read_prompts(arguments: Sequence[str], file: Path | None, stdin: TextIO) -> list[Prompt | UsageError]:
    """Prompts from the arguments, else from the file, else from stdin; of a line that is none, what is wrong with it.

    Raises UsageError if there is no prompt at all.
    """
    prompts: list[Prompt | UsageError] = list(arguments)
    if arguments and file is not None:
        raise UsageError("prompts are given twice, as arguments and as --file", hint="leave one of the two out")
    if not arguments:
        lines = _lines_of(file) if file is not None else typed_lines(stdin)
        parse = _from_json if file is not None and file.suffix == ".jsonl" else _from_text
        prompts = [_parsed(parse, text, number) for number, line in enumerate(lines, 1) if (text := line.rstrip("\r\n")).strip()]
    if not prompts:
        raise UsageError(f"{file or 'the input'} has no prompts", hint='engine generate --artifacts DIR "a prompt"')
    if all(isinstance(prompt, UsageError) for prompt in prompts):
        raise next(prompt for prompt in prompts if isinstance(prompt, UsageError))
    return prompts


def typed_lines(stdin: TextIO) -> Iterator[str]:
    """Lines as they come, the first without a byte order mark. Bytes that are no text are lone surrogates (PEP 383)."""
    allow_any_bytes(stdin)
    for number, line in enumerate(stdin):
        yield line if number else line.removeprefix(_BYTE_ORDER_MARK)


def allow_any_bytes(stdin: TextIO) -> None:
    """Bytes that are no text are read as lone surrogates, and refused where they stand, instead of ending it all."""
    if isinstance(stdin, io.TextIOWrapper):
        stdin.reconfigure(errors="surrogateescape")


def _lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint="give --file a file that is there and readable") from error


def _parsed(parse: Callable[[str, int], Prompt], line: str, number: int) -> Prompt | UsageError:
    try:
        prompt = parse(line, number)
    except UsageError as error:
        return error
    if is_text(prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)):
        return prompt
    return UsageError(f"line {number} is not UTF-8 text: {line!r}", hint="convert it: iconv -f ENCODING -t UTF-8")


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
