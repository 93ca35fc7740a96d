"""`engine verify`: whether an artifact is whole, whose it is, and what it computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..compiler.options import BuildOptions
from ..errors import UsageError
from ..options.option import option, positional, same_as
from ..options.values import DIRECTORY, FILE, positive_number
from .parser import Given, Parser, add_options

if TYPE_CHECKING:
    from ..artifacts import Manifest

DESCRIPTION = (
    "Check an artifact's digest, size and SHA-256 of every file, and that there are no others; report all that is wrong. "
    "With --key, also its signature; with --against, also what it computes."
)
EPILOG = """\
examples:
  engine verify smollm2
  engine verify smollm2 --key public.pem
  engine verify smollm2 --against ./SmolLM2-135M-Instruct --max-kl 0.01   fails in CI where numbers drift"""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is checked."""

    artifacts: Path = positional(**DIRECTORY)
    against: str | None = option(
        None,
        "run artifact and checkpoint (in float32, plain PyTorch) on the same texts; print KL divergence and top-1 agreement, of vectors"
        " the cosine distance, of scores the difference",
        metavar="CHECKPOINT",
    )
    max_kl: float | None = option(
        None, "with --against: fail (exit 7) where the mean KL divergence is above N nats", type=positive_number, metavar="N"
    )
    max_distance: float | None = option(
        None,
        "the same of a model that makes vectors or scores: fail where their mean distance is above N",
        type=positive_number,
        metavar="N",
    )
    ignore_config: Sequence[str] = same_as(BuildOptions, "ignore_config")
    key: Path | None = option(None, "a PEM file with an Ed25519 public key: refuse an artifact that its owner has not signed", **FILE)


def add_arguments(parser: Parser) -> None:
    add_options(parser, VerifyOptions)


def run(given: Given) -> int:
    """Check, and print what was found intact. Returns the exit code."""
    options = VerifyOptions(**given)
    for flag, limit in (("--max-kl", options.max_kl), ("--max-distance", options.max_distance)):
        if limit is not None and options.against is None:
            raise UsageError(f"{flag} without --against has nothing to compare", hint=f"engine verify DIR --against CHECKPOINT {flag} 0.1")
    from ..artifacts import load_manifest, verify

    manifest = load_manifest(options.artifacts)
    limit = _limit(options, manifest)
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

        comparison = compare(options.artifacts, options.against, ignored=options.ignore_config)
        print(comparison)
        if limit is not None:
            comparison.check(limit)
    return 0


def _limit(options: VerifyOptions, manifest: "Manifest") -> float | None:
    """The one that this artifact is held to. Raises UsageError for one of another kind of model."""
    makes_tokens = manifest.pooled is None
    if makes_tokens and options.max_distance is not None:
        raise UsageError(f"--max-distance is of vectors and scores, and {manifest.model.name} makes none", hint="give --max-kl")
    if not makes_tokens and options.max_kl is not None:
        raise UsageError(f"--max-kl is of next tokens, and {manifest.model.name} makes none", hint="give --max-distance")
    return options.max_kl if makes_tokens else options.max_distance
