"""What a person sees of a push or a pull: one bar of bytes, on stderr."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class TransferBar:
    """Drawn while the body of a `with` runs; may be moved by any thread. quiet: draw nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=Console(stderr=True, quiet=quiet),
        )
        self._task = self._progress.add_task("", total=None, visible=False, note="")

    def __enter__(self) -> "TransferBar":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal to others."""
        self._progress.stop()

    def begin(self, name: str, total: int | None = None) -> None:
        """A new stretch of `total` bytes (None: of unknown length)."""
        self._progress.reset(self._task, total=total, visible=True, description=name, note="")

    def advance(self, count: int, note: str | None = None) -> None:
        self._progress.advance(self._task, count)
        if note is not None:
            self._progress.update(self._task, note=note)
