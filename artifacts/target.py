"""Targets: what code is compiled for, as a value with its requirements.

`Target.parse` and `str(target)` round-trip. `cpu` is not a target by itself but a question,
"this machine", and parses to the concrete target that answers it: a later reader of the
artifact sees exactly which instructions it needs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import Misfit, UsageError

_V3_FLAGS = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4_FLAGS = (*_V3_FLAGS, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

CPU_LEVELS: dict[str, tuple[str, ...]] = {"x86-64-v3": _V3_FLAGS, "x86-64-v4": _V4_FLAGS}
"""Instruction-set levels of the x86-64 psABI, with the /proc/cpuinfo flags that each needs."""


@dataclass(frozen=True, kw_only=True)
class CpuExtra:
    """An optional feature that our kernels use.

    machine: its /proc/cpuinfo flags. compiler: g++'s flags for it. only_with: the level and the
    extras beside which alone it is of use.
    """

    machine: tuple[str, ...]
    compiler: tuple[str, ...]
    only_with: tuple[str, ...] = ()


CPU_EXTRAS: dict[str, CpuExtra] = {
    "avx_vnni": CpuExtra(machine=("avx_vnni",), compiler=("-mavxvnni",)),
    "avx512_vnni": CpuExtra(machine=("avx512_vnni",), compiler=("-mavx512vnni",)),
    "avx512_bf16": CpuExtra(machine=("avx512_bf16",), compiler=("-mavx512bf16",)),
    "amx_int8": CpuExtra(machine=("amx_tile", "amx_int8"), compiler=("-mamx-tile", "-mamx-int8"), only_with=("x86-64-v4", "avx512_vnni")),
}
"""What may follow a level in a target's name."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of machine. `level` is an x86-64 psABI level, `extras` are keys of CPU_EXTRAS."""

    level: str
    extras: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, *, machine_flags: Iterable[str] = ()) -> "Target":
        """Read `cpu`, `cpu-x86-64-v3`, `cpu-x86-64-v4` or either level with `+extra` parts.

        machine_flags: /proc/cpuinfo flags of the machine that `cpu` stands for.
        Raises UsageError for anything else.
        """
        name, *extras = text.split("+")
        if name == "cpu" and not extras:
            return cls._of_machine(frozenset(machine_flags))
        level = name.removeprefix("cpu-")
        unknown = [extra for extra in extras if extra not in CPU_EXTRAS]
        if name == level or level not in CPU_LEVELS or unknown:
            known = ", ".join(["cpu", *(f"cpu-{known_level}" for known_level in CPU_LEVELS)])
            raise UsageError(f"unknown target {text!r}", hint=f"known targets: {known}, optionally with +{' +'.join(CPU_EXTRAS)}")
        target = cls(level=level, extras=tuple(sorted(set(extras))))
        for extra in target.extras:
            if lacking := target._lacks_for(extra):
                raise UsageError(
                    f"target {text!r} makes no sense: {extra} is of use only with {' and '.join(lacking)}",
                    hint=f"leave +{extra} out, or name cpu-{'+'.join((*CPU_EXTRAS[extra].only_with, extra))}",
                )
        return target

    @classmethod
    def _of_machine(cls, flags: frozenset[str]) -> "Target":
        levels = [level for level, needed in CPU_LEVELS.items() if flags.issuperset(needed)]
        if not levels:
            missing = ", ".join(sorted(set(_V3_FLAGS) - flags)) or "its flags could not be read"
            raise UsageError(
                f"this processor is below x86-64-v3 ({missing})",
                hint="name the target to build for another machine: --target cpu-x86-64-v3",
            )
        there = cls(level=levels[-1], extras=tuple(sorted(name for name, extra in CPU_EXTRAS.items() if flags.issuperset(extra.machine))))
        return cls(level=there.level, extras=tuple(extra for extra in there.extras if not there._lacks_for(extra)))

    def _lacks_for(self, extra: str) -> list[str]:
        return [part for part in CPU_EXTRAS[extra].only_with if part not in (self.level, *self.extras)]

    def __str__(self) -> str:
        return "+".join([f"cpu-{self.level}", *self.extras])

    @property
    def required_flags(self) -> tuple[str, ...]:
        """/proc/cpuinfo flags that a machine must have to run this target's code."""
        return (*CPU_LEVELS[self.level], *(flag for extra in self.extras for flag in CPU_EXTRAS[extra].machine))

    @property
    def vector_bits(self) -> int:
        return 512 if self.level == "x86-64-v4" else 256

    @property
    def compiler_flags(self) -> tuple[str, ...]:
        """g++ flags for this target; never -march=native, so that keys travel between machines."""
        return (f"-march={self.level}", *(flag for extra in self.extras for flag in CPU_EXTRAS[extra].compiler))

    def misfits(self, machine_flags: Iterable[str]) -> list[Misfit]:
        """Why code for this target cannot run on a machine with these flags (empty: it can)."""
        have = frozenset(machine_flags)
        missing = [flag for flag in self.required_flags if flag not in have]
        return [Misfit(field="target", artifact=str(self), machine=f"lacks {', '.join(missing)}")] if missing else []


@lru_cache(maxsize=1)
def this_machine_flags() -> frozenset[str]:
    """Instruction-set flags of this machine, as /proc/cpuinfo spells them (empty if unreadable)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    # "flags" on x86; lzcnt hides behind "abm" there, which is why neither is in the tables above.
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
