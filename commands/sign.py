"""`engine sign`: a signature beside an artifact's manifest."""

from dataclasses import dataclass
from pathlib import Path

from ..options.option import positional, required
from ..options.values import DIRECTORY, FILE
from .parser import Given, Parser, add_options

DESCRIPTION = (
    "Sign an artifact's digest, after checking every file. The signature lies beside the manifest, in manifest.sig. "
    "Needs the package cryptography (pip install 'engine-llm[sign]')."
)
EPILOG = """\
examples:
  openssl genpkey -algorithm ed25519 -out private.pem
  openssl pkey -in private.pem -pubout -out public.pem
  engine sign smollm2 --key private.pem
  engine verify smollm2 --key public.pem
  engine serve --artifacts smollm2 --verify-key public.pem"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is signed, with which key."""

    artifacts: Path = positional(**DIRECTORY)
    key: Path = required("a PEM file with an Ed25519 private key, not encrypted", **FILE)


def add_arguments(parser: Parser) -> None:
    add_options(parser, Options)


def run(given: Given) -> int:
    """Verify, sign, and print the signature's file. Returns the exit code."""
    options = Options(**given)
    from ..artifacts import load_manifest, verify
    from ..artifacts.signature import read_private_key, sign

    key = read_private_key(options.key)
    manifest = load_manifest(options.artifacts)
    verify(options.artifacts, manifest)
    print(sign(options.artifacts, manifest.digest, key))
    print(f"digest {manifest.digest}")
    return 0
