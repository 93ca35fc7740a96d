"""`engine pull`: an artifact from a repository on the hub, or its code and the weights of a checkpoint."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import EngineError, UsageError
from ..options.option import option
from ..shipping.options import PullOptions
from .parser import Given, Parser, add_options

if TYPE_CHECKING:
    from ..artifacts import Manifest

DESCRIPTION = (
    "Fetch an artifact from a repository on the Hugging Face hub. DIR appears when every file is there and its SHA-256 is "
    "the manifest's; an interrupted pull goes on where it stopped. Needs: pip install 'engine-llm[hub]'."
)
EPILOG = """\
examples:
  engine pull my-team/smollm2-cpu-v3 -o smollm2
  engine pull my-team/llama-8b-code -o tuned --weights-from ./my-fine-tune    the code alone, with weights of your own

For private repositories, set HF_TOKEN or run `hf auth login`."""


@dataclass(frozen=True, kw_only=True)
class Options(PullOptions):
    """A pull, of the code alone if there are weights for it here."""

    weights_from: str | None = option(
        None,
        "fetch the code alone and add the weights of this checkpoint, as engine pack does (needs the extra `build`, no compiler)",
        metavar="CHECKPOINT",
    )
    name: str | None = option(None, "with --weights-from: the model's name in the artifact and in the API (default: the checkpoint's)")

    def __post_init__(self) -> None:
        if self.name is not None and self.weights_from is None:
            raise UsageError("--name is for an artifact that is made here", hint="it goes with --weights-from")


def add_arguments(parser: Parser) -> None:
    add_options(parser, Options)


def run(given: Given) -> int:
    """Pull, and say what `engine serve` would refuse here. Returns the exit code."""
    options = Options(**given)
    if options.weights_from is None:
        _pull(options)
    else:
        _pull_code(options, options.weights_from)
    from ..artifacts import load_manifest

    _warn_of_what_serve_will_refuse(load_manifest(options.output))
    return 0


def _pull(options: Options) -> None:
    from ..artifacts.describe import human_bytes
    from ..shipping.progress import TransferBar
    from ..shipping.pull import pull

    with TransferBar() as bar:
        done = pull(options, bar)
    print(f"{done.repo}@{done.commit[:12]}: {done.files} files, fetched {done.sent_files}, {human_bytes(done.sent_bytes)}")


def _pull_code(options: Options, weights_from: str) -> None:
    from ..compiler.options import PackOptions
    from ..shipping.progress import TransferBar
    from ..shipping.pull import pulled_code
    from .pack import pack

    with TransferBar() as bar, pulled_code(options, bar) as code:
        bar.stop()
        pack(PackOptions(code=code, weights_from=weights_from, output=options.output, name=options.name, force=options.force))


def _warn_of_what_serve_will_refuse(manifest: "Manifest") -> None:
    from ..artifacts import check_servable
    from ..runtime.fit import check_fit

    for check in (check_servable, check_fit):
        try:
            check(manifest)
        except EngineError as error:
            print(f"warning: {error}", file=sys.stderr)
