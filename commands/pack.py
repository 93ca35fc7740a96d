"""`engine pack`: an artifact's code and a checkpoint's weights to an artifact."""

from ..compiler.options import PackOptions
from .parser import Given, Parser, add_options

DESCRIPTION = (
    "Make an artifact of the code of one and the weights and tokenizer of a checkpoint. Needs no "
    "compiler. The checkpoint must be of the same architecture, shapes and storage formats; else a table says what differs."
)
EPILOG = """\
examples:
  engine build ./my-llama --weights none -o code                once for an architecture: a few MB
  engine pack code --weights-from ./my-fine-tune -o artifact    for each fine-tune of it"""


def add_arguments(parser: Parser) -> None:
    add_options(parser, PackOptions)


def run(given: Given) -> int:
    """Pack. Returns the exit code."""
    pack(PackOptions(**given))
    return 0


def pack(options: PackOptions) -> None:
    """With bars and a summary in the terminal."""
    from ..compiler.add_weights import add_weights
    from ..compiler.progress import Reporter

    add_weights(options, Reporter())
