"""What this process may use of the machine: cores and memory, within its control groups. No torch."""

import math
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ...cpus import cores_of, usable_cpus
from . import cgroups

_ROOT = Path("/")


class _Share:
    """Of how many workers of one server this is one."""

    workers = 1


def share_with(workers: int, cpus: Collection[int]) -> None:
    """From now on this process takes one of `workers` equal parts of time and free memory, and runs on these CPUs alone, if any are
    given."""
    _Share.workers = workers
    if cpus and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # a CPU that has gone meanwhile: the scheduler knows better
            os.sched_setaffinity(0, cpus)


def workers() -> int:
    """How many share the machine."""
    return _Share.workers


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def default_threads() -> int:
    """One thread per usable physical core, fewer where this worker's share of what control groups grant is less time than that."""
    cores = len(cores_of(usable_cpus()))
    quota = cgroups.cpu_quota(_ROOT)
    return max(1, cores if quota is None else min(cores, math.ceil(quota / _Share.workers)))


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that could be allocated now without swapping, within the limits of control groups. root: of the file system."""
    free, granted = _meminfo_available(root / "proc/meminfo"), cgroups.free_memory(root)
    return free if granted is None else min(free, granted)


def _meminfo_available(meminfo: Path) -> int:
    for line in (_read(meminfo) or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
