"""Whether this machine runs an artifact, without loading it."""

from ..artifacts import Manifest
from .kinds.choose import kind_of


def check_fit(manifest: Manifest) -> None:
    """Raise MismatchError for an artifact that was made for another kind of machine: another processor, torch or GPU."""
    kind_of(manifest).check_fit(manifest)
