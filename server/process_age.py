"""How long this process has existed."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()
_START_TIME_FIELD = 22


def process_age() -> float:
    """Seconds since this process was started, the interpreter's own start included (to 10 ms).

    Where the kernel does not tell (proc(5)), seconds since this module was imported.
    """
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(after_name[_START_TIME_FIELD - 3])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
