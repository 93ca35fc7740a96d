"""What this process may use of the machine: cores and memory, within its control groups. No torch."""

import math
import os
from pathlib import Path

from . import cgroups

_ROOT = Path("/")
_CPUS = Path("/sys/devices/system/cpu")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def usable_cpus() -> set[int]:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: set[int], cpu_root: Path = _CPUS) -> int:
    """Number of physical cores behind these logical CPUs (hyper-threads counted once)."""
    cores = {_read(cpu_root / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return len(cores)


def default_threads() -> int:
    """One thread per usable physical core, fewer where control groups grant less time than that."""
    cores = physical_cores(usable_cpus())
    quota = cgroups.cpu_quota(_ROOT)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


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
