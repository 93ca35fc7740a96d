"""`engine build`: a checkpoint to an artifact."""

from dataclasses import dataclass

from ..compiler.options import BuildOptions
from ..options.option import option
from .parser import Given, Parser, add_options

DESCRIPTION = "Compile a checkpoint into an artifact: a directory of native code, packed weights and tokenizer."
EPILOG = """\
examples:
  engine build ./my-llama -o artifact                      a Hugging Face directory, for this machine
  engine build HuggingFaceTB/SmolLM2-135M-Instruct -o a    a name on the hub (HF_HUB_OFFLINE=1: its cache only)
  engine build model.Q4_1.gguf --target cpu-x86-64-v3 -o a a GGUF file, for every AVX2 machine
  engine build ./my-llama --target sm90 -o artifact        for NVIDIA Hopper; no GPU, driver or CUDA toolkit is needed here

The same build again, or one of the same architecture with other weights, compiles nothing."""


@dataclass(frozen=True, kw_only=True)
class Options(BuildOptions):
    """A build, or what one would do."""

    dry_run: bool = option(False, "only print what would be compiled, reused and packed, in seconds; writes nothing")


def add_arguments(parser: Parser) -> None:
    add_options(parser, Options)


def run(given: Given) -> int:
    """Build, or print what would be done. Returns the exit code."""
    options = Options(**given)
    from ..compiler.environment import forget_torch_variables

    forget_torch_variables()
    from ..compiler.progress import Reporter

    if options.dry_run:
        from rich.console import Console

        from ..compiler.dry_run import dry_run

        Console().print(dry_run(options, Reporter()).table(), soft_wrap=True)
    else:
        from ..compiler.build import build

        build(options, Reporter())
    return 0
