"""Targets on NVIDIA: one compute capability each, since the code uses what only that one has."""

from dataclasses import dataclass

from ..errors import Misfit, UsageError

CAPABILITIES = {"sm90": 90}
"""Targets that can be built, and their compute capability times ten."""


@dataclass(frozen=True, kw_only=True)
class NvidiaTarget:
    """One kind of NVIDIA GPU. `sm90` is Hopper (H100, H200, GH200); its cubins are sm_90a and run on nothing else."""

    capability: int

    @classmethod
    def parse(cls, text: str) -> "NvidiaTarget":
        """Read `sm90`. Raises UsageError for anything else."""
        if text not in CAPABILITIES:
            raise UsageError(f"unknown target {text!r}", hint=f"known NVIDIA targets: {', '.join(CAPABILITIES)}")
        return cls(capability=CAPABILITIES[text])

    def __str__(self) -> str:
        return f"sm{self.capability}"

    def misfits(self, capability: int | None) -> list[Misfit]:
        """Why code for this target cannot run on a GPU of that capability (None: there is no GPU or driver)."""
        if capability == self.capability:
            return []
        return [Misfit(field="target", artifact=str(self), machine="no NVIDIA GPU" if capability is None else f"sm{capability}")]
