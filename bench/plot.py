"""Plots of sweeps, with matplotlib (the extra `bench`)."""

from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import UsageError
from .latency_results import LatencyResults
from .report import Report
from .serve_results import Row, ServeResults

_FORMATS = (".png", ".svg", ".pdf")


def check(file: Path) -> None:
    """Raises UsageError, before anything is measured, if `file` cannot be drawn."""
    if file.suffix not in _FORMATS:
        raise UsageError(f"{file} cannot be drawn", hint=f"plots are {', '.join(_FORMATS)}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{file} cannot be written: there is no directory {file.parent}", hint="make it first")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", hint="pip install 'engine-llm[bench]'")


def plot(report: Report, file: Path) -> None:
    """Draw the results of `serve` or `latency`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    facts = report.provenance
    figure.suptitle(f"engine bench {report.benchmark}: {facts.cpu}, {facts.cores} cores, {facts.date[:10]}", fontsize=10)
    left, right = figure.subplots(1, 2)
    (_serve if report.benchmark == "serve" else _latency)(report.results, left, right)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file)


def _serve(results: ServeResults, left: Any, right: Any) -> None:
    loads = [_load(row) for row in results.rows]
    for name, color in (("output_tokens_per_s", "C0"), ("total_tokens_per_s", "C1")):
        runs = [[float(getattr(run.summary, name)) for run in row.runs] for row in results.rows]
        left.plot(loads, [median(values) for values in runs], "o-", color=color, label=name.removesuffix("_per_s").replace("_", " ") + "/s")
        left.fill_between(loads, [min(values) for values in runs], [max(values) for values in runs], color=color, alpha=0.2)
    for metric, part, style in (("ttft", "p50", "o-"), ("ttft", "p99", "o:"), ("tpot", "p50", "s-"), ("tpot", "p99", "s:")):
        right.plot(loads, [_percentile(row, metric, part) for row in results.rows], style, label=f"{metric.upper()} {part}")
    left.set(xlabel=_unit(results), ylabel="tokens/s", xticks=loads)
    right.set(xlabel=_unit(results), ylabel="ms", xticks=loads)


def _load(row: Row) -> float:
    return row.rate if row.rate is not None else float(row.concurrency or 0)


def _unit(results: ServeResults) -> str:
    return "clients" if results.rows[0].rate is None else "requests/s offered"


def _percentile(row: Row, metric: str, part: str) -> float:
    found = [getattr(run.summary, metric) for run in row.runs]
    milliseconds: list[float] = [getattr(value, part) * 1000 for value in found if value is not None]
    return median(milliseconds) if milliseconds else float("nan")


def _latency(results: LatencyResults, left: Any, right: Any) -> None:
    for context in dict.fromkeys(row.context for row in results.decode):
        rows = [row for row in results.decode if row.context == context]
        left.plot([row.batch for row in rows], [row.batch / median(row.step_s) for row in rows], "o-", label=f"context {context:,}")
    right.plot([row.tokens for row in results.prefill], [median(row.first_token_s) for row in results.prefill], "o-", label="prefill")
    left.set(xlabel="sequences that decode together", ylabel="tokens/s", xticks=sorted({row.batch for row in results.decode}))
    right.set(xlabel="prompt tokens", ylabel="s to first token")
