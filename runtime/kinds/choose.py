"""Which kind of machine an artifact was built for."""

from ...artifacts import Manifest
from ...artifacts.nvidia_target import CAPABILITIES
from .kind import RuntimeKind


def kind_of(manifest: Manifest) -> RuntimeKind:
    """The kind of the artifact's target. The code of the others is not imported."""
    if manifest.target in CAPABILITIES:
        from .nvidia import NvidiaKind

        return NvidiaKind()
    from .cpu import CpuKind

    return CpuKind()
