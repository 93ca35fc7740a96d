"""`engine chat`: a conversation in a terminal, without HTTP."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..options.option import option, required, same_as
from ..options.runtime import RuntimeOptions
from ..options.values import DIRECTORY
from ..server.options import GenerationConfig, ServeOptions
from .parser import Given, Parser, add_options
from .prompts import Message, allow_any_bytes
from .sampling import SamplingOptions

if TYPE_CHECKING:
    from ..server.llm import LLM, Params

DESCRIPTION = "Talk to a model in the terminal. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."
EPILOG = """\
examples:
  engine chat --artifacts smollm2 --system "You answer in one sentence."
  echo "What is the capital of France?" | engine chat --artifacts smollm2"""


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, RuntimeOptions):
    """With whom to talk, and how."""

    artifacts: Path = required("a directory that `engine build` wrote", **DIRECTORY)
    system: str | None = option(None, "a system message before the conversation", metavar="TEXT")
    generation_config: GenerationConfig = same_as(ServeOptions, "generation_config")
    temperature: float | None = same_as(
        SamplingOptions, "temperature", help="0 always takes the likeliest token; above 1 is wilder (default: the model's, else 0.7)"
    )
    top_p: float | None = same_as(
        SamplingOptions, "top_p", help="choose among the likeliest tokens that make up P together (default: the model's, else 0.95)"
    )


def add_arguments(parser: Parser) -> None:
    add_options(parser, Options)


def run(given: Given) -> int:
    """One line in, an answer out, until the input ends. Returns the exit code."""
    options = Options(**given)
    from .terminal import open_llm, user

    opening: list[Message] = [] if options.system is None else [{"role": "system", "content": options.system}]
    interactive = sys.stdin.isatty()
    with open_llm(options.artifacts, options, options.generation_config) as llm:
        if interactive:
            print(f"{llm.manifest.model.name}: /reset forgets, /exit leaves, Ctrl-C stops an answer", file=sys.stderr)
        params, messages = _params(options, llm), list(opening)
        for line in _typed_lines(interactive):
            if line == "/exit":
                break
            if line == "/reset":
                messages = list(opening)
                continue
            try:
                answer = _answer(llm, [*messages, user(line)], params)
            except RequestError as error:
                if not interactive:
                    raise
                print(f"error: {error}", file=sys.stderr)
                continue
            messages += [user(line), {"role": "assistant", "content": answer}]
    return 0


def _params(options: Options, llm: "LLM") -> "Params":
    """What neither the options nor the model say is milder than it is for programs."""
    params, model = options.params(), llm.sampling
    if params.temperature is None and model.temperature is None:
        params.temperature = 0.7
    if params.top_p is None and model.top_p is None:
        params.top_p = 0.95
    return params


def _typed_lines(interactive: bool) -> Iterator[str]:
    if interactive:
        # Gives input() line editing and history, where Python was built with it.
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    allow_any_bytes(sys.stdin)
    while True:
        try:
            line = (input("> ") if interactive else input()).removeprefix("\ufeff").strip()
        except EOFError:
            return
        if line:
            yield line


def _answer(llm: "LLM", messages: list[Message], params: "Params") -> str:
    """Print the answer as it comes. Ctrl-C ends it; what was said until then counts."""
    from .terminal import show

    with llm.stream(messages, params) as stream:
        try:
            show(stream)
        except KeyboardInterrupt:
            print()
        return stream.completion.text
