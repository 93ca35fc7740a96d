"""`engine tune`: which kernels are fastest on this machine's GPU."""

from ..bench.options import TuneOptions
from .parser import Given, Parser, add_options

DESCRIPTION = (
    "Time every candidate of every kernel of an artifact on this machine's GPU, at the sizes of its graphs, and write "
    "which to take to a small file. Takes minutes; nothing is compiled here, and the artifact stays as it is."
)
EPILOG = """\
examples:
  engine build ./my-llama --target sm90 --tunable --weights none -o tunable     anywhere
  engine tune tunable -o h100.json                                              on the GPU
  engine build ./my-llama --target sm90 --tuned h100.json -o artifact           anywhere

A choice is for a shape, not for a model: one file serves every model whose layers have the shapes in it."""


def add_arguments(parser: Parser) -> None:
    add_options(parser, TuneOptions)


def run(given: Given) -> int:
    """Measure, print and write. Returns the exit code."""
    options = TuneOptions(**given)
    from ..bench.tune import tune

    tune(options)
    return 0
