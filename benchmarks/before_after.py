"""Two states of Engine on one machine, in turns: decode, prefill, throughput and start-up.

    python benchmarks/before_after.py --before ENGINE ARTIFACT --after ENGINE ARTIFACT [--rounds N] [--json FILE]

ENGINE is the program `engine` of each state's own environment (`git worktree add ../before COMMIT`,
then `make demo` there), ARTIFACT what that state built of the same checkpoint. Each round runs `engine bench`
once with both, the one that goes first taking turns, since a virtual machine may be slow for minutes.
Shown are the medians of all rounds, and of before over after in each: above 1 the state after is
faster. Reports, judges nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

BENCHMARKS = {
    "latency": ["--batch", "1,8", "--context", "128", "--prefill", "512", "--steps", "64", "--runs", "2"],
    "throughput": ["--requests", "48", "--output-tokens", "64", "--runs", "1"],
    "startup": ["--runs", "1"],
}
FIGURES: dict[str, tuple[str, float, str, Callable[[Any], list[float]]]] = {
    "decode, 1 sequence": ("latency", 1e3, "ms", lambda results: results["decode"][0]["step_s"]),
    "decode, 8 sequences": ("latency", 1e3, "ms", lambda results: results["decode"][1]["step_s"]),
    "prefill, 512 tokens": ("latency", 1e3, "ms", lambda results: results["prefill"][0]["first_token_s"]),
    "48 requests at once": ("throughput", 1.0, "s", lambda results: [run["wall_s"] for run in results["runs"]]),
    "exec to first token": ("startup", 1e3, "ms", lambda results: [run["first_token"] for run in results["engine_serve"]]),
}
"""From the results of a benchmark to seconds, all of which become one median per round."""
STATES = ("before", "after")
Seconds = dict[str, dict[str, list[float]]]
"""By figure and state, one per round."""


def bench(engine: Path, artifact: Path, benchmark: str) -> Any:
    """The JSON file of one run."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "results.json"
        command = [str(engine), "bench", benchmark, "--artifacts", str(artifact), *BENCHMARKS[benchmark], "--json", str(file)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        return json.loads(file.read_bytes())


def ratio(seconds: Seconds, figure: str) -> float:
    """How many times faster the state after is: the median over the rounds."""
    before, after = (seconds[figure][state] for state in STATES)
    return statistics.median(first / second for first, second in zip(before, after, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for state in STATES:
        parser.add_argument(f"--{state}", type=Path, nargs=2, required=True, metavar=("ENGINE", "ARTIFACT"))
    parser.add_argument("--rounds", type=int, default=10, help="(default: 10; about half a minute each)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    seconds: Seconds = {figure: {state: [] for state in STATES} for figure in FIGURES}
    facts: dict[str, Any] = {}
    console = Console(width=None if sys.stdout.isatty() else 100)
    for number in track(range(options.rounds), "rounds", console=Console(stderr=True)):
        for benchmark in BENCHMARKS:
            for state in STATES if number % 2 == 0 else reversed(STATES):
                engine, artifact = getattr(options, state)
                content = bench(engine, artifact, benchmark)
                facts[state] = content["provenance"]
                for figure, (source, _, _, of) in FIGURES.items():
                    if source == benchmark:
                        seconds[figure][state].append(statistics.median(of(content["results"])))
    table = Table("", *STATES, "before / after")
    for figure, (_, scale, unit, _) in FIGURES.items():
        medians = (f"{statistics.median(seconds[figure][state]) * scale:,.2f} {unit}" for state in STATES)
        table.add_row(figure, *medians, f"{ratio(seconds, figure):.3f}")
    console.print(table)
    if options.json:
        ratios = {figure: ratio(seconds, figure) for figure in FIGURES}
        content = {
            "command": " ".join(sys.argv),
            "provenance": facts,
            "arguments": BENCHMARKS,
            "before over after": ratios,
            "seconds": seconds,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
