"""`engine inspect`: what is in an artifact."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..options.option import option, positional
from ..options.values import DIRECTORY, FILE
from .parser import Given, Parser, add_options

if TYPE_CHECKING:
    from .heat_map import ExpertLoad

DESCRIPTION = (
    "Show an artifact's model, target, toolchain, segments, weights, fusions and files. Executes nothing from it, unless --routes asks "
    "which experts a text goes to."
)
EPILOG = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which artifact, and in which form."""

    artifacts: Path = positional(**DIRECTORY)
    weights: bool = option(False, "list every weight: what it is made from, its format, shape and bytes")
    routes: str | None = option(
        None,
        "run this text, and show how often each expert of each layer was chosen as a heat map (of an artifact that was built with "
        "--capture-routes)",
        metavar="TEXT",
    )
    json: bool = option(False, "the manifest as JSON; with --routes the counts")
    html: Path | None = option(None, "with --routes: write the heat map into a page, too", **FILE)

    def __post_init__(self) -> None:
        if self.routes is not None and self.weights:
            raise UsageError("--weights and --routes show different things", hint="give one of the two")
        if self.html is not None and self.routes is None:
            raise UsageError("--html writes what --routes shows", hint="give --routes TEXT, too")


def add_arguments(parser: Parser) -> None:
    add_options(parser, Options)


def run(given: Given) -> int:
    """Print the manifest, or where a text goes. Returns the exit code."""
    options = Options(**given)
    from ..artifacts import load_manifest

    if options.routes is not None:
        _show_routes(options, _expert_load(options.artifacts, options.routes))
        return 0
    manifest = load_manifest(options.artifacts)
    if options.json:
        sys.stdout.buffer.write(manifest.encode())
    else:
        from rich.console import Console

        from ..artifacts.describe import describe, describe_weights

        Console().print(describe_weights(manifest) if options.weights else describe(manifest))
    return 0


def _expert_load(artifacts: Path, text: str) -> "ExpertLoad":
    """Raises UsageError for an artifact that does not tell its routes."""
    from ..artifacts import load_manifest
    from ..options.runtime import RuntimeOptions
    from ..server.llm import Params
    from .heat_map import ExpertLoad
    from .terminal import open_llm

    routes = load_manifest(artifacts).routes
    if routes is None:
        raise UsageError(
            f"{artifacts} does not tell which experts tokens choose", hint="build a model with experts with engine build --capture-routes"
        )
    with open_llm(artifacts, RuntimeOptions(), "none") as llm:
        (completion,) = llm.generate([text], Params(max_tokens=0, return_routed_experts=True))
    assert completion.routed_experts is not None
    return ExpertLoad.of(routes, completion.routed_experts)


def _show_routes(options: Options, load: "ExpertLoad") -> None:
    if options.html is not None:
        try:
            options.html.write_text(load.html(), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{options.html} cannot be written: {error.strerror}", hint="give a file that can be with --html") from error
    if options.json:
        sys.stdout.buffer.write(load.encode())
    else:
        from rich.console import Console

        Console().print(load.table())
