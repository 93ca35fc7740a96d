"""`engine bench`: runs one benchmark, prints its tables, writes what was asked for."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from . import options as kinds
from .report import Report, show, write_json

_WIDTH = 160
"""Columns of text that goes to a file or another program."""


def bench(benchmark: str, options: dict[str, Any], *, api_key: str | None = None) -> int:
    """options: as `arguments.parse` gives them. api_key: of a server at --url. Results go to stdout. Returns the exit code."""
    if benchmark == "serve":
        options["api_key"] = api_key
    if "serve_arguments" in options:
        options["serve_arguments"] = tuple(options["serve_arguments"])
    json_file: Path | None = options.pop("json", None)
    plot_file: Path | None = options.pop("plot", None)
    if plot_file is not None:
        from .plot import check

        check(plot_file)
    report = BENCHMARKS[benchmark](options)
    show(report, Console(width=None if sys.stdout.isatty() else _WIDTH))
    if json_file is not None:
        write_json(report, json_file)
    if plot_file is not None:
        from .plot import plot

        plot(report, plot_file)
    return 0


def _startup(options: dict[str, Any]) -> Report:
    from .startup import measure

    return measure(kinds.Startup(**options))


def _serve(options: dict[str, Any]) -> Report:
    from .serve import measure

    return measure(kinds.Serve(**options))


def _latency(options: dict[str, Any]) -> Report:
    from .latency import measure

    return measure(kinds.Latency(**options))


def _throughput(options: dict[str, Any]) -> Report:
    from .throughput import measure

    return measure(kinds.Throughput(**options))


def _kernels(options: dict[str, Any]) -> Report:
    from .kernels import measure

    return measure(kinds.Kernels(**options))


BENCHMARKS: dict[str, Callable[[dict[str, Any]], Report]] = {
    "startup": _startup,
    "latency": _latency,
    "throughput": _throughput,
    "serve": _serve,
    "kernels": _kernels,
}
