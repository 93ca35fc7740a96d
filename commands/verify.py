"""`engine verify`: whether an artifact is whole, whose it is, and what it computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..compiler.options import BuildOptions
from ..options.option import option, positional, same_as
from ..options.values import DIRECTORY, FILE
from .parser import Given, Parser, add_options

DESCRIPTION = (
    "Check an artifact's digest, size and SHA-256 of every file, and that there are no others; report all that is wrong. "
    "With --key, also its signature; with --against, also what it computes."
)
EPILOG = """\
examples:
  engine verify smollm2
  engine verify smollm2 --key public.pem
  engine verify smollm2 --against ./SmolLM2-135M-Instruct"""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is checked."""

    artifacts: Path = positional(**DIRECTORY)
    against: str | None = option(
        None,
        "run artifact and checkpoint (in float32, plain PyTorch) on the same texts; print KL divergence and top-1 agreement",
        metavar="CHECKPOINT",
    )
    ignore_config: Sequence[str] = same_as(BuildOptions, "ignore_config")
    key: Path | None = option(None, "a PEM file with an Ed25519 public key: refuse an artifact that its owner has not signed", **FILE)


def add_arguments(parser: Parser) -> None:
    add_options(parser, VerifyOptions)


def run(given: Given) -> int:
    """Check, and print what was found intact. Returns the exit code."""
    options = VerifyOptions(**given)
    from ..artifacts import load_manifest, verify

    manifest = load_manifest(options.artifacts)
    signed = ""
    if options.key is not None:
        from ..artifacts.signature import verify_signature

        verify_signature(options.artifacts, manifest.digest, options.key)
        signed = f", signed by the owner of {options.key}"
    verify(options.artifacts, manifest)
    size = sum(file.bytes for file in manifest.files.values())
    print(f"{options.artifacts}: {len(manifest.files)} files, {size:,} bytes, all intact{signed}")
    print(f"digest {manifest.digest}")
    if options.against is not None:
        from ..compiler.verify import compare

        print(compare(options.artifacts, options.against, ignored=options.ignore_config))
    return 0
