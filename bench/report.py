"""Results for people and for programs: a table on the terminal, everything in JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table as RichTable

from ..errors import UsageError
from .provenance import Provenance


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Median, least and greatest of some runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median=statistics.median(values), low=min(values), high=max(values))

    def show(self, scale: float = 1.0, digits: int = 1) -> str:
        """`12.0 (11.5-12.8)`, the range left out where it does not show."""
        middle, low, high = (f"{value * scale:,.{digits}f}" for value in (self.median, self.low, self.high))
        return middle if low == high else f"{middle} ({low}-{high})"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; the first column is aligned left, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a benchmark has to say. settings and results: anything that msgspec can write as JSON."""

    benchmark: str
    tables: Sequence[Table]
    settings: Any
    results: Any
    provenance: Provenance
    warnings: Sequence[str] = field(default=())


def show(report: Report, console: Console) -> None:
    """Print the tables, below one line about the machine."""
    facts = report.provenance
    about = [f"{facts.cpu}, {facts.cores} cores", f"engine {facts.versions.get('engine-llm', '?')} {facts.commit or ''}".strip()]
    if facts.gpu is not None:
        about.insert(0, facts.gpu)
    if facts.artifact is not None:
        about.append(f"{facts.artifact.model} ({facts.artifact.weights}) for {facts.artifact.target}")
    console.print("; ".join(about), highlight=False, style="dim")
    for table in report.tables:
        console.print(f"\n{table.title}", highlight=False, style="bold")
        console.print(_rich(table))
        for note in table.notes:
            console.print(note, highlight=False, style="dim")
    for warning in report.warnings:
        console.print(f"warning: {warning}", highlight=False, style="yellow")


def write_json(report: Report, file: Path) -> None:
    """Everything measured, with its provenance. Raises UsageError if the file cannot be written."""
    content = {
        "benchmark": report.benchmark,
        "provenance": report.provenance,
        "settings": report.settings,
        "warnings": list(report.warnings),
        "results": report.results,
    }
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(content, enc_hook=_plain), indent=1) + b"\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", hint="give --json a place that can be written to") from error


def _plain(value: object) -> str:
    """A path by its last part: a result says what was measured, not where it lay."""
    return value.name if isinstance(value, Path) else str(value)


def _rich(table: Table) -> RichTable:
    shown = RichTable(box=None, pad_edge=False, show_header=any(table.columns))
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    return shown
