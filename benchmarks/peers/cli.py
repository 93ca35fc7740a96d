"""The command behind `python benchmarks/peers`."""

import argparse
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.console import Console

from engine.bench.plot import check as check_plot
from engine.bench.provenance import provenance
from engine.bench.report import Report, show, write_json
from engine.errors import EngineError

from . import engine_serve, llama_cpp, modular_max, onnxruntime_genai, openvino_genai, transformers_serve, vllm
from .environment import PeerError
from .load import CONCURRENCY, PHASES, Load, open_prompts
from .measure import Measured, measure, say
from .pace import machine_pace
from .plot import plot
from .subject import Peer, Place
from .table import tables, warnings

_PEERS: dict[str, Peer] = {
    "engine": engine_serve,
    "llama.cpp": llama_cpp,
    "openvino": openvino_genai,
    "onnxruntime": onnxruntime_genai,
    "vllm": vllm,
    "transformers": transformers_serve,
    "modular": modular_max,
}
_DESCRIPTION = """Measures Engine and its peers, one after another, with the same client, load and number of threads.

Peers come from the package index that pip is set to, each into a virtual environment of its own
under --work; what is there already stays. The first time takes an hour and 15 GB. Leave the machine alone while it
measures: runs during which others used more than 3 % of it, or its host gave it less than 85 % of its best speed, are
repeated, and marked if that did not help.
"""


_WIDTH = 150
"""Of tables that go to a file or a pipe."""


class _Results(msgspec.Struct, frozen=True, kw_only=True):
    versions: dict[str, Mapping[str, str]]
    measured: list[Measured]


def main(argv: Sequence[str] | None = None) -> None:
    options = _parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what runs is stopped
    try:
        _main(options)
    except EngineError as error:
        sys.exit(f"error: {error}")


def _main(options: argparse.Namespace) -> None:
    place = Place(
        artifacts=options.artifacts,
        gguf=options.gguf.absolute(),
        work=options.work.absolute(),
        threads=options.threads,
        weights=options.weights,
    )
    if options.plot:
        check_plot(options.plot)
    (place.work / "logs").mkdir(parents=True, exist_ok=True)
    versions, failures = _install(options.peers, place)
    if not options.install_only:
        report = _measure(options, place, versions, failures)
        show(report, Console(width=None if sys.stdout.isatty() else _WIDTH))
        if options.plot:
            plot(report.results.measured, report.provenance, options.plot)


def _install(names: Sequence[str], place: Place) -> tuple[dict[str, Mapping[str, str]], dict[str, str]]:
    """Versions of the peers that can be measured, by name, and what is wrong with the others."""
    versions, failures = {}, {}
    for name in names:
        say(f"{name}: installing what is missing")
        try:
            versions[name] = _PEERS[name].install(place)
        except PeerError as error:
            failures[name] = str(error)
            say(f"  failed: {error}")
    return versions, failures


def _measure(options: argparse.Namespace, place: Place, versions: dict[str, Mapping[str, str]], failures: dict[str, str]) -> Report:
    """Measure what was asked for. The JSON file is written after each subject: an hour's work is not lost with the last one."""
    load = Load.tiny() if options.tiny else Load(runs=options.runs)
    load = replace(load, question=not options.random_weights, concurrency=tuple(map(int, options.clients)))
    prompts = open_prompts(place.artifacts, load)
    pace = machine_pace(place.artifacts, place.threads)
    results = _Results(versions=versions, measured=[])
    settings = {"load": load, "threads": place.threads, "gguf": place.gguf.name, "phases": options.phases}
    report = Report(benchmark="peers", tables=(), settings=settings, results=results, provenance=provenance(place.artifacts))
    for subject in [subject for name in versions for subject in _PEERS[name].subjects(place)]:
        if place.wants(subject.weights):
            say(subject.name)
            results.measured.append(measure(subject, prompts, load, options.phases, place.work / "logs", pace))
            report = replace(report, tables=tables(results.measured, versions), warnings=warnings(results.measured, failures))
            if options.json:
                write_json(report, options.json)
    return report


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return chosen

    return names


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/peers", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--artifacts", type=Path, required=True, metavar="DIR", help="Engine's artifact, built from --gguf")
    parser.add_argument(
        "--gguf", type=Path, required=True, metavar="FILE", help="the model; peers that read no GGUF get its dequantized weights"
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where environments, models and logs of peers are kept")
    parser.add_argument("--peers", type=_names(_PEERS), default=[*_PEERS], metavar="A,B", help=f"some of: {', '.join(_PEERS)}")
    parser.add_argument(
        "--weights", type=lambda text: tuple(text.split(",")), metavar="A,B", help="only these kinds of weights: Q4_1, int8, ..."
    )
    parser.add_argument("--phases", type=_names(PHASES), default=[*PHASES], metavar="A,B", help=f"some of: {', '.join(PHASES)}")
    clients = [*map(str, CONCURRENCY)]
    parser.add_argument(
        "--clients", type=_names(clients), default=clients, metavar="A,B", help=f"loads of several clients: some of {', '.join(clients)}"
    )
    parser.add_argument("--random-weights", action="store_true", help="the model's answers mean nothing: no question is asked first")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of each (default: 2)")
    parser.add_argument(
        "--runs", type=int, default=Load.runs, metavar="N", help="runs of each load of several clients (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="a load that only shows that everything works")
    parser.add_argument("--install-only", action="store_true", help="stop before measuring")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run, with provenance, to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures to FILE (needs matplotlib)")
    return parser.parse_args(argv)
