"""`engine generate`: prompts to texts in a terminal, without HTTP."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..options.option import option, positional, required, same_as
from ..options.runtime import RuntimeOptions
from ..options.values import DIRECTORY
from .parser import Given, Parser, add_options
from .prompts import Prompt, read_prompts
from .sampling import SamplingOptions

if TYPE_CHECKING:
    from ..server.text.completion import Completion

DESCRIPTION = "Complete prompts without a server, all in one batch. Prompts: arguments, else --file, else stdin, one per line."
EPILOG = """\
examples:
  engine generate --artifacts smollm2 "The capital of France is" --max-tokens 8 --temperature 0
  engine generate --artifacts smollm2 --chat --file questions.txt --json > answers.jsonl
  head -100 prompts.txt | engine generate --artifacts smollm2

A .jsonl file has {"prompt": "..."} or {"messages": [...]} on each line."""


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, RuntimeOptions):
    """What to complete, and how."""

    prompts: Sequence[str] = positional(default=(), metavar="PROMPT")
    artifacts: Path = required("a directory that `engine build` wrote", **DIRECTORY)
    file: Path | None = option(None, "read prompts from a .txt (one per line) or .jsonl file", type=Path)
    chat: bool = option(False, "put each prompt through the chat template, as a user's message")
    json: bool = option(False, "one JSON object per line: prompt, text, finish_reason, token counts")
    max_tokens: int | None = same_as(SamplingOptions, "max_tokens", default=256, help="longest answer, in tokens")


def add_arguments(parser: Parser) -> None:
    add_options(parser, Options)


def run(given: Given) -> int:
    """Complete every prompt. Returns the exit code."""
    options = Options(**given)
    from .terminal import open_llm, show, user

    asked: list[Any] = read_prompts(options.prompts, options.file, sys.stdin)
    if options.chat:
        asked = [[user(prompt)] if isinstance(prompt, str) else prompt for prompt in asked]
    with open_llm(options.artifacts, options) as llm:
        if len(asked) == 1 and not options.json:
            with llm.stream(asked[0], options.params()) as stream:
                show(stream)
            return 0
        for prompt, completion in zip(asked, llm.generate(asked, options.params()), strict=True):
            print(_as_json(prompt, completion) if options.json else _as_text(prompt, completion))
    return 0


def _as_text(prompt: Prompt, completion: "Completion") -> str:
    shown = prompt if isinstance(prompt, str) else prompt[-1].get("content", "")
    return f"> {shown}\n{completion.text}\n"


def _as_json(prompt: Prompt, completion: "Completion") -> str:
    entry = {
        "prompt" if isinstance(prompt, str) else "messages": prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.generated_tokens,
    }
    return json.dumps(entry, ensure_ascii=False)
