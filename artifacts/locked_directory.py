"""Directories that are being written: whoever finds one can tell whether its writer still lives.

The writer holds a lock on the directory, which the system releases when the writer ends, however
it does. So what a killed process left is known for what it is, and removed.
"""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor


@contextmanager
def locked_directory(parent: Path, name: str) -> Iterator[Path]:
    """A new directory `.NAME-XXXX` in `parent` for the body to fill or to rename; what is left of it after the body is removed."""
    unlocked = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.new-"))
    handle = os.open(unlocked, os.O_RDONLY)
    path = unlocked
    try:
        unlocked.chmod(0o755)
        lock_descriptor(handle)
        # Only now under the name that `remove_abandoned` looks for.
        path = unlocked.rename(parent / f".{name}-{unlocked.name.rpartition('-')[2]}")
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def remove_abandoned(parent: Path, name: str) -> None:
    """Remove every `.NAME-XXXX` in `parent` whose process has ended."""
    for path in parent.glob(f".{glob.escape(name)}-*"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # its process has just ended; or it is none of ours
        try:
            if lock_descriptor(handle, blocking=False):  # else its process is at work
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)
