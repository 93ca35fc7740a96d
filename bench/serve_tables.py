"""The tables of a load test."""

from collections.abc import Callable, Sequence

from .metrics import Distribution, Summary
from .report import Spread, Table
from .serve_results import Row, ServeResults

_METRICS: dict[str, Callable[[Summary], Distribution | None]] = {
    "TTFT": lambda summary: summary.ttft,
    "ITL": lambda summary: summary.itl,
    "TPOT": lambda summary: summary.tpot,
    "E2E": lambda summary: summary.e2e,
}


def tables(results: ServeResults) -> list[Table]:
    """One of rates, one of times; a row per load."""
    return [_rates(results), _times(results)]


def _rates(results: ServeResults) -> Table:
    ours = results.peak_rss_bytes is not None
    with_goodput = any(run.summary.goodput is not None for row in results.rows for run in row.runs)
    columns = ["load", "done", "requests/s", "output tok/s", "total tok/s"]
    columns += ["goodput/s"] * with_goodput + ["cores used"] * ours + ["client's"]
    rows = []
    for row in results.rows:
        summaries = [run.summary for run in row.runs]
        cells = [_load(row), f"{sum(summary.completed for summary in summaries)}/{sum(summary.requests for summary in summaries)}"]
        cells += [
            _spread([summary.requests_per_s for summary in summaries], digits=2),
            _spread([summary.output_tokens_per_s for summary in summaries]),
            _spread([summary.total_tokens_per_s for summary in summaries]),
        ]
        if with_goodput:
            cells.append(_spread([summary.goodput or 0.0 for summary in summaries], digits=2))
        if ours:
            cells.append(_spread([(run.server_cpu_s or 0.0) / run.summary.wall_s for run in row.runs], digits=2))
        rows.append([*cells, _spread([run.client_cpu_s / run.summary.wall_s for run in row.runs], digits=2)])
    notes = (
        [f"peak resident memory, server and worker: {results.peak_rss_bytes / 1e6:,.0f} MB"] if results.peak_rss_bytes is not None else []
    )
    return Table(title=f"{results.model}: rates, median (range) of the runs", columns=columns, rows=rows, notes=notes)


def _times(results: ServeResults) -> Table:
    columns = ["load", *(f"{name} {part}" for name in _METRICS for part in ("p50", "p90", "p99"))]
    rows = []
    for row in results.rows:
        cells = [_load(row)]
        for metric in _METRICS.values():
            found = [value for run in row.runs if (value := metric(run.summary)) is not None]
            cells += [_milliseconds([getattr(value, part) for value in found]) for part in ("p50", "p90", "p99")]
        rows.append(cells)
    return Table(title="times in ms, median of the runs", columns=columns, rows=rows)


def _load(row: Row) -> str:
    if row.rate is not None:
        return f"{row.rate:g} requests/s"
    return "1 client" if row.concurrency == 1 else f"{row.concurrency} clients"


def _spread(values: Sequence[float], digits: int = 1) -> str:
    return Spread.of(values).show(digits=digits)


def _milliseconds(values: Sequence[float]) -> str:
    if not values:
        return "-"
    milliseconds = Spread.of(values).median * 1000
    return f"{milliseconds:,.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"
