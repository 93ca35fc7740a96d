"""`engine bench`: runs one benchmark, prints its tables, writes what was asked for."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.benchmarks import BENCHMARKS, Benchmark
from ..options.values import FILE
from ..server.options import API_KEY_VARIABLE
from .parser import Given, Parser, add_options

if TYPE_CHECKING:
    from ..bench.report import Report

DESCRIPTION = "Measure an artifact, or any OpenAI-compatible server. Medians with their range; --json keeps everything."
EPILOG = """\
examples:
  engine bench startup --artifacts smollm2
  engine bench serve --artifacts smollm2 --concurrency 1,8,32 --json serve.json
  engine bench serve --url http://localhost:8080 --tokenizer tokenizer.json

`engine bench BENCHMARK --help` explains one; docs/benchmarks.md defines every metric. Measure on a
machine that does nothing else: the load average before the benchmark is in the JSON file."""
_WIDTH = 160
"""Columns of text that goes to a file or another program."""


def add_arguments(parser: Parser) -> None:
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, benchmark in BENCHMARKS.items():
        own = benchmarks.add_parser(name, help=benchmark.help, description=f"Measure {benchmark.help}.", epilog=benchmark.epilog)
        _add_benchmark(own, benchmark)


def _add_benchmark(parser: Parser, benchmark: Benchmark) -> None:
    add_options(parser, benchmark.options)
    parser.add_argument("--json", help="write every run to FILE, with machine, versions, commit and command line", **FILE)
    if benchmark.plots:
        parser.add_argument("--plot", help="draw the result to a .png, .svg or .pdf (pip install 'engine-llm[bench]')", **FILE)
    if benchmark.passes_on:
        parser.add_argument(
            "serve_arguments", nargs="*", metavar="ARGUMENT", default=(), help="after --: further arguments of engine serve"
        )


def run(given: Given) -> int:
    """Measure. Results go to stdout. Returns the exit code."""
    from rich.console import Console

    from ..bench.report import show, write_json

    name: str = given.pop("benchmark")
    json_file: Path | None = given.pop("json", None)
    plot_file: Path | None = given.pop("plot", None)
    if plot_file is not None:
        from ..bench.plot import check

        check(plot_file)
    report = measure(name, given)
    show(report, Console(width=None if sys.stdout.isatty() else _WIDTH))
    if json_file is not None:
        write_json(report, json_file)
    if plot_file is not None:
        from ..bench.plot import plot

        plot(report, plot_file)
    return 0


def measure(benchmark: str, given: Given) -> "Report":
    """Run the benchmark of that name, `bench/NAME.py`."""
    if "serve_arguments" in given:
        given["serve_arguments"] = tuple(given["serve_arguments"])
    if benchmark == "serve":
        given["api_key"] = os.environ.get(API_KEY_VARIABLE) or None
    report: Report = import_module(f"..bench.{benchmark}", __package__).measure(BENCHMARKS[benchmark].options(**given))
    return report
