"""The right to make one entry of a store: a locked file, which the system unlocks when its process ends, however it does."""

import fcntl
import os
from pathlib import Path


class Claim:
    """Holds a lock until `release` or the end of the `with` block. Without a file it holds nothing: there is no store to protect."""

    def __init__(self, path: Path | None = None, handle: int = -1) -> None:
        self._path, self._handle = path, handle

    @classmethod
    def try_for(cls, path: Path) -> "Claim | None":
        """The claim on `path`, None while another process has it. Raises OSError where files cannot be made."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.stat(), os.fstat(handle)):
                return cls(path, handle)
        except (BlockingIOError, FileNotFoundError):
            pass  # another has it, or had it and removed the file before we came
        except OSError:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def release(self) -> None:
        """Let others have it. The file goes first, while nobody else can have locked it."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._path = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
