"""What the control groups of this process grant: its own and all above it, of version 1 and 2 (cgroups(7), the kernel's cgroup-v2.rst)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("proc/self")


@dataclass(frozen=True, kw_only=True)
class _Group:
    """One directory of a hierarchy. unified: whether it is of version 2."""

    directory: Path
    unified: bool

    def cpus(self) -> float | None:
        """CPUs' worth of time, None where there is no limit."""
        if self.unified:
            quota, _, period = (_read(self.directory / "cpu.max") or "max").partition(" ")
        else:
            quota, period = (_read(self.directory / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None

    def free_memory(self) -> int | None:
        """Bytes that its members may still take, None where there is no limit. What it caches of files gives way, so it is free."""
        limits = [
            _number(self.directory / name) for name in (("memory.max", "memory.high") if self.unified else ("memory.limit_in_bytes",))
        ]
        used = _number(self.directory / ("memory.current" if self.unified else "memory.usage_in_bytes"))
        if used is None or all(limit is None for limit in limits):
            return None
        limit = min(limit for limit in limits if limit is not None)
        return min(limit, max(0, limit - used) + self._reclaimable())

    def _reclaimable(self) -> int:
        lines = (line.partition(" ") for line in (_read(self.directory / "memory.stat") or "").splitlines())
        values = {name: int(value) for name, _, value in lines if value.isdecimal()}
        names = ("inactive_file", "active_file", "slab_reclaimable") if self.unified else ("total_inactive_file", "total_active_file")
        return sum(values.get(name, 0) for name in names)


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that all groups grant, None where there is no limit. root: of the file system."""
    return min((cpus for group in _groups("cpu", root) if (cpus := group.cpus()) is not None), default=None)


def free_memory(root: Path) -> int | None:
    """Bytes that all groups leave free, None where there is no limit. root: of the file system."""
    return min((free for group in _groups("memory", root) if (free := group.free_memory()) is not None), default=None)


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """This process's group and those above it, wherever the controller may be: each is in one hierarchy."""
    mounts = list(_mounts(root))
    for line in (_read(root / _PROC / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        unified = controllers == ""
        if not unified and controller not in controllers.split(","):
            continue
        for kind, options, top, mounted in mounts:
            if kind == ("cgroup2" if unified else "cgroup") and (unified or controller in options):
                # In a container, the path may be one of the host's, of which nothing is mounted here but the group itself.
                inside = Path(path).relative_to(top) if Path(path).is_relative_to(top) else Path()
                for each in (inside, *inside.parents):
                    yield _Group(directory=root / mounted.relative_to("/") / each, unified=unified)


def _mounts(root: Path) -> Iterator[tuple[str, list[str], Path, Path]]:
    """Of every mounted hierarchy its kind, its options, which of its groups is mounted, and where (proc(5))."""
    for line in (_read(root / _PROC / "mountinfo") or "").splitlines():
        place, _, what = line.partition(" - ")
        kind, *_, options = what.split(" ")
        if kind in ("cgroup", "cgroup2"):
            _, _, _, top, mounted, *_ = place.split(" ")
            yield kind, options.split(","), Path(top), Path(mounted)


def _number(path: Path) -> int | None:
    text = _read(path) or ""
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None
