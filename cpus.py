"""Which processors this process may run on, and how they lie. Standard library only: servers read it before they import."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")


def usable_cpus() -> set[int]:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cores_of(cpus: Collection[int], system: Path = _SYSTEM) -> list[list[int]]:
    """These logical CPUs by physical core, the cores of a NUMA node one after another. system: where the kernel describes them."""
    nodes = _nodes(system)
    cores: dict[str, list[int]] = {}
    for cpu in sorted(cpus, key=lambda cpu: (nodes.get(cpu, 0), cpu)):
        siblings = _read(system / f"cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings or str(cpu), []).append(cpu)
    return list(cores.values())


def shares_of(cpus: Collection[int], count: int, system: Path = _SYSTEM) -> list[list[int]]:
    """The CPUs in `count` shares as equal as cores allow, each of neighbours; of fewer cores than that, hyper-threads are shared out."""
    cores = cores_of(cpus, system)
    if len(cores) < count:
        cores = [[cpu] for core in cores for cpu in core]
    ends = [number * len(cores) // count for number in range(count + 1)]
    return [[cpu for core in cores[begin:end] for cpu in core] for begin, end in pairwise(ends)]


def parse_cpus(text: str) -> list[int]:
    """`0-3,8` as the kernel and taskset write it. Raises ValueError."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _nodes(system: Path) -> dict[int, int]:
    """The NUMA node of each logical CPU; none where the kernel does not tell."""
    return {cpu: node for node, cpus in _cpus_of_nodes(system) for cpu in cpus}


def _cpus_of_nodes(system: Path) -> Iterator[tuple[int, list[int]]]:
    for directory in system.glob("node/node[0-9]*"):
        with suppress(ValueError):
            yield int(directory.name.removeprefix("node")), parse_cpus(_read(directory / "cpulist") or "")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
