"""What processes have used of memory and time, from /proc."""

import os
from pathlib import Path

import msgspec

_PROC = Path("/proc")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """peak_rss_bytes: the sum of the processes' largest resident sizes. Shared pages count in each that touched them."""

    peak_rss_bytes: int
    cpu_s: float


def family(pid: int) -> list[int]:
    """The process and all that it has started and that still run."""
    parents = {int(path.name): parent for path in _PROC.glob("[0-9]*") if (parent := _parent(path)) is not None}
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def usage(pid: int) -> Usage:
    """What the family of this process has used until now. Raises FileNotFoundError if it is gone."""
    members = family(pid)
    return Usage(peak_rss_bytes=sum(map(_peak_rss, members)), cpu_s=sum(map(_cpu_seconds, members)))


def anonymous_bytes(pid: int) -> int:
    """What the family of this process holds at the moment of memory that is no file's, and so cannot be dropped and read again."""
    return sum(_status(member, "RssAnon") or 0 for member in family(pid))


def _peak_rss(pid: int) -> int:
    if (size := _status(pid, "VmHWM")) is None:
        raise FileNotFoundError(f"process {pid} has ended")
    return size


def _status(pid: int, field: str) -> int | None:
    """Bytes that /proc/PID/status gives for `field`; None of a process that has ended."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _cpu_seconds(pid: int) -> float:
    fields = _stat(_PROC / str(pid))
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def _parent(process: Path) -> int | None:
    try:
        return int(_stat(process)[1])
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return None


def _stat(process: Path) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold spaces: state, parent, ..."""
    return (process / "stat").read_text().rpartition(")")[2].split()
