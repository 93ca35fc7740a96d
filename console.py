"""`engine generate` and `engine chat`: a model in the terminal, without HTTP."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import RequestError, UsageError
from .server.llm import LLM, Params
from .server.text.completion import Completion

Message = dict[str, Any]
Prompt = str | list[Message]
WORKER_OPTIONS = ("artifacts", "threads", "kv_memory", "max_num_seqs", "max_batch_tokens")


def generate(options: dict[str, Any]) -> int:
    """Complete every prompt, all in one batch. options: as `arguments.parse` gives them."""
    prompts, file = options.pop("prompts"), options.pop("file", None)
    as_chat, as_json = options.pop("chat", False), options.pop("json", False)
    worker, params = _split(options)
    asked: list[Any] = read_prompts(prompts, file, sys.stdin)
    if as_chat:
        asked = [[_user(prompt)] if isinstance(prompt, str) else prompt for prompt in asked]
    with LLM(**worker) as llm:
        if len(asked) == 1 and not as_json:
            with llm.stream(asked[0], params) as stream:
                _show(stream)
            return 0
        for prompt, completion in zip(asked, llm.generate(asked, params), strict=True):
            print(_as_json(prompt, completion) if as_json else _as_text(prompt, completion))
    return 0


def chat(options: dict[str, Any]) -> int:
    """A conversation: one line in, an answer out, until the input ends."""
    system = options.pop("system", None)
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    worker, params = _split(options)
    interactive = sys.stdin.isatty()
    with LLM(**worker) as llm:
        if interactive:
            print(f"{llm.manifest.model.name}: /reset forgets, /exit leaves, Ctrl-C stops an answer", file=sys.stderr)
        messages = list(opening)
        for line in _typed_lines(interactive):
            if line == "/exit":
                break
            if line == "/reset":
                messages = list(opening)
                continue
            try:
                answer = _answer(llm, [*messages, _user(line)], params)
            except RequestError as error:
                if not interactive:
                    raise
                print(f"error: {error}", file=sys.stderr)
                continue
            messages += [_user(line), {"role": "assistant", "content": answer}]
    return 0


def read_prompts(arguments: list[str], file: Path | None, stdin: Iterable[str]) -> list[Prompt]:
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
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: byte {error.start}") from error


def _from_text(line: str, _number: int) -> Prompt:
    return line


def _from_json(line: str, number: int) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UsageError(f"line {number} is not JSON: {error}") from error
    if isinstance(entry, dict) and len(entry.keys() & {"prompt", "messages"}) == 1:
        match entry.get("prompt", entry.get("messages")):
            case str() as text if "prompt" in entry:
                return text
            case list() as messages if "messages" in entry and all(isinstance(message, dict) for message in messages):
                return messages
    raise UsageError(
        f"line {number} is not a prompt", hint='each line is {"prompt": "..."} or {"messages": [{"role": ..., "content": ...}, ...]}'
    )


def _typed_lines(interactive: bool) -> Iterator[str]:
    if interactive:
        # Gives input() line editing and history, where Python was built with it.
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            line = (input("> ") if interactive else input()).strip()
        except EOFError:
            return
        if line:
            yield line


def _answer(llm: LLM, messages: list[Message], params: Params) -> str:
    """Print the answer as it comes. Ctrl-C ends it; what was said until then counts."""
    with llm.stream(messages, params) as stream:
        try:
            _show(stream)
        except KeyboardInterrupt:
            print()
        return stream.completion.text


def _show(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], Params]:
    """Options of the worker, and of sampling."""
    worker = {name: options.pop(name) for name in WORKER_OPTIONS if name in options}
    return worker, Params(**options)


def _as_text(prompt: Prompt, completion: Completion) -> str:
    shown = prompt if isinstance(prompt, str) else prompt[-1].get("content", "")
    return f"> {shown}\n{completion.text}\n"


def _as_json(prompt: Prompt, completion: Completion) -> str:
    entry = {
        "prompt" if isinstance(prompt, str) else "messages": prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.generated_tokens,
    }
    return json.dumps(entry, ensure_ascii=False)
