"""Whether this machine runs an artifact, without loading it."""

from ..artifacts import Manifest, check_machine
from ..artifacts.nvidia_target import CAPABILITIES


def check_fit(manifest: Manifest) -> None:
    """Raise MismatchError for an artifact that was made for another kind of machine: another processor, torch or GPU."""
    check_machine(manifest)
    if manifest.target in CAPABILITIES:
        from .cuda.find_device import find_device

        find_device(manifest)
