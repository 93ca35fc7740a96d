"""What this process may use of the machine: cores and memory, within its cgroup. No torch."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
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


def cpu_quota(cgroup: Path = _CGROUP) -> float | None:
    """CPUs' worth of time that the cgroup grants, None where there is no limit."""
    limit = (_read(cgroup / "cpu.max") or "").split()
    if len(limit) != 2 or limit[0] == "max":
        return None
    return int(limit[0]) / int(limit[1])


def default_threads() -> int:
    """One thread per usable physical core, fewer where the cgroup grants less time than that."""
    cores = physical_cores(usable_cpus())
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int:
    """Bytes that could be allocated now without swapping, within the cgroup's limit."""
    free = _meminfo_available(meminfo)
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if limit is not None and limit != "max" and used is not None:
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _meminfo_available(meminfo: Path) -> int:
    for line in (_read(meminfo) or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
