"""What a person sees of a build: a bar per stage, and a summary at the end. All on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(kw_only=True)
class BuildSummary:
    """What a build did. seconds: per stage, in order. widened: quantized weights that became numbers. store_refusal: why the store could
    not keep what was compiled."""

    output: str = ""
    target: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    segments_compiled: int = 0
    segments_reused: int = 0
    segment_calls: int = 0
    fusions: dict[str, int] = field(default_factory=dict)
    unfused: dict[str, int] | None = None
    kernels: str = ""
    tuning: str = ""
    code_bytes: int = 0
    weight_bytes: int = 0
    widened: str = ""
    probe: str = ""
    store_refusal: str = ""


class Stage:
    """One stage while it runs: `total` and `advance` move its bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def total(self, count: int) -> None:
        self._progress.update(self._task, total=count)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._progress.advance(self._task, count)
        if note is not None:
            self.note(note)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)


class Reporter:
    """Shows stages as they run. quiet: show nothing (tests, the Python API)."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=self._console)
        self.summary = BuildSummary()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draw the bars while the body runs."""
        with self._progress:
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time the body as stage `name` of the summary."""
        task = self._progress.add_task(name, total=1, note="")
        stage = Stage(self._progress, task)
        start = time.perf_counter()
        yield stage
        self.summary.seconds[name] = time.perf_counter() - start
        total = self._progress.tasks[task].total
        self._progress.update(task, completed=total)

    def print_summary(self) -> None:
        """The closing table."""
        summary = self.summary
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_row("artifact", f"{summary.output}  ({summary.target})")
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in summary.seconds.items())
        table.add_row("seconds", f"{sum(summary.seconds.values()):.1f}  ({stages})")
        compiled, reused = summary.segments_compiled, summary.segments_reused
        distinct = f"{compiled + reused} distinct, {compiled} compiled, {reused} reused"
        table.add_row("segments", f"{distinct}, {summary.segment_calls} calls per step")
        if summary.kernels:
            table.add_row("kernels", summary.kernels)
        if summary.tuning:
            table.add_row("tuned", summary.tuning)
        table.add_row("rewrites", ", ".join(f"{name} {matches}" for name, matches in summary.fusions.items()))
        if summary.unfused is not None:
            left = ", ".join(f"{name} {count}" for name, count in summary.unfused.items())
            table.add_row("left to one thread", left or "nothing")
        table.add_row("bytes", f"code {summary.code_bytes / 1e6:.1f} MB, weights {summary.weight_bytes / 1e6:.1f} MB")
        if summary.widened:
            table.add_row("widened", summary.widened)
        table.add_row("probe", summary.probe)
        if summary.store_refusal:
            table.add_row("[bold yellow]store", f"[bold yellow]{escape(summary.store_refusal)}")
        self._console.print(table)
