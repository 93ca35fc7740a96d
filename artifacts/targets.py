"""Every kind of target by its name."""

from collections.abc import Iterable

from ..errors import UsageError
from .nvidia_target import CAPABILITIES, NvidiaTarget
from .target import Target

AnyTarget = Target | NvidiaTarget


def parse_target(text: str, *, machine_flags: Iterable[str] = ()) -> AnyTarget:
    """Read the name of a target, CPU or NVIDIA; machine_flags as in `Target.parse`. Raises UsageError for an unknown one."""
    if text.startswith("sm"):
        return NvidiaTarget.parse(text)
    try:
        return Target.parse(text, machine_flags=machine_flags)
    except UsageError as error:
        if not text.startswith("cpu"):
            raise UsageError(error.message, hint=f"{error.hint}; or {', '.join(CAPABILITIES)} for NVIDIA GPUs") from None
        raise
