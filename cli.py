"""The `engine` command: finds the command, runs it, turns errors into messages.

Only the module of the command that is wanted is imported, and each imports what it needs when it
runs: `engine serve` must never import the compiler, and a help text must not wait for torch.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .commands.parser import Given, Parser
from .errors import EngineError, UsageError
from .version import __version__

COMMANDS = {
    "build": "compile a checkpoint into an artifact",
    "pack": "add a checkpoint's weights to an artifact's code",
    "push": "put an artifact into a repository on the Hugging Face hub",
    "pull": "fetch an artifact from a repository on the Hugging Face hub",
    "serve": "serve an artifact over HTTP (OpenAI's API)",
    "generate": "complete prompts, offline and batched",
    "chat": "talk to a model in the terminal",
    "inspect": "show what is in an artifact",
    "verify": "check an artifact's files, who signed it, or its numbers against a checkpoint",
    "plan": "how many sequences an artifact serves in how much memory",
    "cache": "look at, move and shrink the store of what was compiled",
    "sign": "vouch for an artifact with an Ed25519 key",
    "tune": "measure on a GPU which kernels are fastest, for the next build",
    "bench": "measure start-up, latency, throughput, a server under load, kernels",
}
"""Every command and its line of `engine --help`. `commands/NAME.py` has DESCRIPTION, EPILOG, add_arguments and run."""

EPILOG = """\
examples:
  engine build ./SmolLM2-135M-Instruct --target cpu -o smollm2
  engine serve --artifacts smollm2
  engine chat --artifacts smollm2

`engine COMMAND --help` explains a command. Results go to stdout, everything else to stderr.
exit codes: 0 done, 2 usage, 3 damaged checkpoint, 4 unsupported model, 5 build failed,
6 damaged artifact, 7 artifact for another machine, 8 worker failed, 9 request refused, 10 GPU or its driver failed,
11 push or pull failed, 130 Ctrl-C"""
BUILD_PACKAGES = ("depyf", "gguf", "huggingface_hub", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. argv: without the program's name, sys.argv's by default."""
    try:
        command, given = parse(sys.argv[1:] if argv is None else argv)
        code: int = module_of(command).run(given)
        return code
    except EngineError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; the interpreter must not fail once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in BUILD_PACKAGES:
            raise
        return _fail(UsageError(f"the package {error.name} is not installed", hint="pip install 'engine-llm[build]'"))


def parse(argv: Sequence[str]) -> tuple[str, Given]:
    """The command and the options that it was given. Raises UsageError; exits 0 after printing help or the version."""
    wanted = next((word for word in argv if not word.startswith("-")), None)
    given = vars(_parser(wanted).parse_args(argv))
    return given.pop("command"), given


def module_of(command: str) -> Any:
    """What runs the command."""
    return import_module(f".commands.{command}", __package__)


def _parser(wanted: str | None) -> Parser:
    """wanted: the command whose flags are needed; the others get a line of help."""
    parser = Parser(
        prog="engine", description="Compile a language model once, ahead of time; serve it in seconds, compiling nothing.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"engine {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, line in COMMANDS.items():
        own = commands.add_parser(name, help=line)
        if name == wanted:
            module = module_of(name)
            own.description, own.epilog = module.DESCRIPTION, module.EPILOG
            module.add_arguments(own)
    return parser


def _fail(error: EngineError) -> int:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
