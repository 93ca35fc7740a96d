"""`engine inspect`: what is in an artifact."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ..options.option import option, positional
from ..options.values import DIRECTORY
from .parser import Given, Parser, add_options

DESCRIPTION = "Show an artifact's model, target, toolchain, segments, weights, fusions and files. Executes nothing from it."
EPILOG = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which artifact, and in which form."""

    artifacts: Path = positional(**DIRECTORY)
    weights: bool = option(False, "list every weight: what it is made from, its format, shape and bytes")
    json: bool = option(False, "the manifest as JSON")


def add_arguments(parser: Parser) -> None:
    add_options(parser, Options)


def run(given: Given) -> int:
    """Print the manifest. Returns the exit code."""
    options = Options(**given)
    from ..artifacts import load_manifest

    manifest = load_manifest(options.artifacts)
    if options.json:
        sys.stdout.buffer.write(manifest.encode())
    else:
        from rich.console import Console

        from ..artifacts.describe import describe, describe_weights

        Console().print(describe_weights(manifest) if options.weights else describe(manifest))
    return 0
