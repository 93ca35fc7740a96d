"""What other processes, or other guests of the same host, took of the machine while something was measured. Linux."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from engine.bench.processes import family

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_ALL, _IDLE = slice(1, 9), slice(4, 6)
"""Of the words of the `cpu` line in /proc/stat: all times, stolen ones included (guests' are in users'), and idle and waiting."""


@dataclass(frozen=True)
class CpuTime:
    """Seconds of CPU time until now: `busy` of the whole machine, `own` of this process and all that it ever started."""

    at_s: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> "CpuTime":
        words = (_PROC / "stat").read_text().split(maxsplit=9)
        busy, idle = (sum(map(int, words[part])) for part in (_ALL, _IDLE))
        return cls(time.perf_counter(), (busy - idle) * _TICK_S, sum(map(_seconds, family(os.getpid()))))


def others_share(begin: CpuTime, end: CpuTime) -> float:
    """Share of the machine's capacity between two moments, 0 to 1, that was not ours."""
    capacity_s = (end.at_s - begin.at_s) * (os.cpu_count() or 1)
    return max(0.0, (end.busy_s - begin.busy_s) - (end.own_s - begin.own_s)) / capacity_s


def _seconds(pid: int) -> float:
    """CPU time of a process and of those of its children that have ended and were waited for."""
    try:
        words = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) * _TICK_S
