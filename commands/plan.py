"""`engine plan`: how many sequences an artifact serves in how much memory."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..options.option import option, positional, required, same_as
from ..options.runtime import RuntimeOptions
from ..options.values import COUNT, DIRECTORY, SIZE
from .parser import Given, Parser, add_options

DESCRIPTION = (
    "Say what serving takes and how many sequences fit, from the manifest alone: with the arithmetic of engine serve, "
    "but without weights, and on any machine."
)
EPILOG = """\
examples:
  engine plan smollm2 --memory 4GiB
  engine plan smollm2 --memory 16GiB --context 1024 --context 8192 --max-num-seqs 128 --json"""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Which artifact, in how much memory, with which limits."""

    artifacts: Path = positional(**DIRECTORY)
    memory: int = required(
        "what is free where it is to be served, once the server's processes run: on a CPU what `free` calls available, within the "
        "container's limit, on a GPU what its driver calls free",
        **SIZE,
    )
    context: Sequence[int] = option(
        (),
        "prompt plus answer, in tokens; may be given more than once (default: a sixteenth, a quarter and all of the model's)",
        **COUNT,
    )
    max_num_seqs: int = same_as(RuntimeOptions, "max_num_seqs")
    max_batch_tokens: int = same_as(RuntimeOptions, "max_batch_tokens")
    json: bool = option(False, "all figures as JSON, in bytes and tokens")


def add_arguments(parser: Parser) -> None:
    add_options(parser, PlanOptions)


def run(given: Given) -> int:
    """Print the figures. Returns the exit code."""
    options = PlanOptions(**given)
    from ..artifacts import load_manifest
    from ..runtime.capacity.capacity import capacity, check

    limits = RuntimeOptions(max_num_seqs=options.max_num_seqs, max_batch_tokens=options.max_batch_tokens)
    manifest = load_manifest(options.artifacts)
    found = capacity(manifest, options.memory, limits, options.context)
    if options.json:
        sys.stdout.buffer.write(found.encode())
    else:
        from rich.console import Console

        from ..runtime.capacity.table import capacity_table

        Console().print(capacity_table(found))
    check(found, manifest, options.context)
    return 0
