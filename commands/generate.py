"""`engine generate`: prompts to texts in a terminal, without HTTP."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, RequestError, UsageError
from ..options.option import option, positional, required, same_as
from ..options.runtime import RuntimeOptions
from ..options.values import DIRECTORY
from ..server.options import GenerationConfig, ServeOptions
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

A .jsonl file has {"prompt": "..."} or {"messages": [...]} on each line. What cannot be completed is told, the rest goes on, and
the exit code is 9; with --json its line has an "error"."""


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, RuntimeOptions):
    """What to complete, and how."""

    prompts: Sequence[str] = positional(default=(), metavar="PROMPT")
    artifacts: Path = required("a directory that `engine build` wrote", **DIRECTORY)
    file: Path | None = option(None, "read prompts from a .txt (one per line) or .jsonl file", type=Path)
    chat: bool = option(False, "put each prompt through the chat template, as a user's message")
    json: bool = option(False, "one JSON object per line: prompt, text, finish_reason, token counts")
    generation_config: GenerationConfig = same_as(ServeOptions, "generation_config")
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
    params = options.params()
    with open_llm(options.artifacts, options, options.generation_config) as llm:
        if len(asked) == 1 and not options.json:
            with llm.stream(asked[0], params) as stream:
                show(stream)
            return 0
        refused = {i: prompt if isinstance(prompt, UsageError) else llm.refusal(prompt, params) for i, prompt in enumerate(asked)}
        left = [prompt for i, prompt in enumerate(asked) if refused[i] is None]
        if not left and (error := refused[0]) is not None:
            raise error
        completions = iter(llm.generate(left, params))
        for i, prompt in enumerate(asked):
            if (error := refused[i]) is not None:
                print(f"error: prompt {i + 1}: {error}", file=sys.stderr)
                if options.json:
                    print(_refused_as_json(prompt, error))
            else:
                print((_as_json if options.json else _as_text)(prompt, next(completions)))
    return 0 if len(left) == len(asked) else RequestError.exit_code


def _refused_as_json(prompt: Prompt | UsageError, error: EngineError) -> str:
    """A line for every prompt, so that the lines of input and output belong together."""
    asked = {} if isinstance(prompt, UsageError) else {_kind(prompt): prompt}
    return json.dumps({**asked, "error": error.message}, ensure_ascii=not asked)


def _kind(prompt: Prompt) -> str:
    return "prompt" if isinstance(prompt, str) else "messages"


def _as_text(prompt: Prompt, completion: "Completion") -> str:
    shown = prompt if isinstance(prompt, str) else prompt[-1].get("content", "")
    return f"> {shown}\n{completion.text}\n"


def _as_json(prompt: Prompt, completion: "Completion") -> str:
    entry = {
        _kind(prompt): prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.generated_tokens,
    }
    return json.dumps(entry, ensure_ascii=False)
