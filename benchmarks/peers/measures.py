"""What is read from the runs of a subject: the columns of the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.bench.report import Spread

from .load import CONCURRENCY
from .measure import Measured, Run


@dataclass(frozen=True)
class Measure:
    """values: one for each run, in `unit`; none if it was not measured."""

    name: str
    unit: str
    more_is_better: bool
    digits: int
    values: Callable[[Measured], Sequence[float]]

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}"

    def show(self, measured: Measured) -> str:
        values = self.values(measured)
        return Spread.of(values).show(digits=self.digits) if values else "-"

    def median(self, measured: Measured) -> float | None:
        values = self.values(measured)
        return Spread.of(values).median if values else None

    def ahead(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is; below 1 it is worse."""
        return ours / theirs if self.more_is_better else theirs / ours


def _starts(measured: Measured) -> list[float]:
    return [start.first_token_s for start in measured.starts]


def _ttft(measured: Measured) -> list[float]:
    return [measured.ttft.summary.ttft.p50] if measured.ttft and measured.ttft.summary.ttft else []


def _decode(measured: Measured) -> list[float]:
    """By TPOT and not by ITL, which says little of a server that sends several tokens in one piece."""
    return [1 / measured.single.summary.tpot.p50] if measured.single and measured.single.summary.tpot else []


def _memory(measured: Measured) -> list[float]:
    return [measured.peak_memory / 1e6] if measured.peak_memory else []


def _throughput(concurrency: int) -> Callable[[Measured], list[float]]:
    return lambda measured: [run.summary.output_tokens_per_s for run in measured.throughput.get(concurrency, [])]


MEASURES = (
    Measure("exec to first token", "s", False, 2, _starts),
    Measure("long prompt's TTFT", "s", False, 2, _ttft),
    Measure("decode alone", "tok/s", True, 1, _decode),
    *(Measure(f"output of {count} clients", "tok/s", True, 1, _throughput(count)) for count in CONCURRENCY),
    Measure("peak memory", "MB", False, 0, _memory),
)


def runs(measured: Measured) -> list[Run]:
    """All that took load."""
    alone = [run for run in (measured.single, measured.ttft) if run is not None]
    return alone + [run for runs in measured.throughput.values() for run in runs]
