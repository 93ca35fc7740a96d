"""The right to make one entry of a store: a locked file, which the system unlocks when its process ends, however it does."""

from pathlib import Path

from filelock import FileLock, Timeout


class Claim:
    """Holds a lock until `release` or the end of the `with` block. Without one it holds nothing: there is no store to protect."""

    def __init__(self, lock: FileLock | None = None) -> None:
        self._lock = lock

    @classmethod
    def try_for(cls, path: Path) -> "Claim | None":
        """The claim on `path`, None while another process has it. Raises OSError where files cannot be made, or not be locked."""
        lock = FileLock(path, mode=0o666, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            return None  # another has it, or had it and removed the file before we came
        return cls(lock)

    def release(self) -> None:
        """Let others have it. The file goes first, while nobody else can have locked it."""
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
