"""What each graph rewrite gives alone: the same model built without it, measured in turns with the whole.

    python benchmarks/passes.py MODEL --work DIR [--rounds N] [--json FILE]

Every variant is one artifact in DIR (kept, and used again). A round measures all of them one after
another with `engine bench latency`, so that a slow minute of the machine slows all; the figures are
medians over rounds, the ratio is time without the pass over time with all. Reports, judges nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.passes.pipeline import pipeline

ENGINE = Path(sys.executable).with_name("engine")
WHOLE = "all passes"
MEASURES = {"decode 1": ("decode", "step_s", 1), "decode 8": ("decode", "step_s", 8), "prefill 512": ("prefill", "first_token_s", 512)}


def build(model: str, work: Path, disabled: str | None) -> Path:
    artifact = work / (disabled or "all")
    if not (artifact / "manifest.json").exists():
        leave_out = ["--disable-pass", disabled] if disabled else []
        command = [str(ENGINE), "build", model, "-o", str(artifact), "--store", str(work / "store"), *leave_out]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return artifact


def measure(artifact: Path) -> dict[str, Any]:
    """The report of one `engine bench latency`."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        flags = ["--batch", "1,8", "--context", "128", "--prefill", "512", "--json", str(report)]
        command = [str(ENGINE), "bench", "latency", "--artifacts", str(artifact), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loaded: dict[str, Any] = json.loads(report.read_bytes())
        return loaded


def median(reports: list[dict[str, Any]], name: str) -> float:
    """Median seconds of a measure over rounds."""
    section, seconds, size = MEASURES[name]
    key = "batch" if section == "decode" else "tokens"
    rows = [row for report in reports for row in report["results"][section] if row[key] == size]
    return float(statistics.median(statistics.median(row[seconds]) for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    optional = [item.name for item in pipeline({}) if not item.required]
    artifacts = {name or WHOLE: build(options.model, options.work, name) for name in (None, *optional)}
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in artifacts}
    for _ in range(options.rounds):
        for name, artifact in artifacts.items():
            reports[name].append(measure(artifact))
    rows = {name: {label: median(found, label) for label in MEASURES} for name, found in reports.items()}
    table = Table("without", *(f"{label}, ms" for label in MEASURES), *(f"{label}, ratio" for label in MEASURES))
    for name, row in rows.items():
        table.add_row(
            name, *(f"{value * 1e3:.2f}" for value in row.values()), *(f"{row[label] / rows[WHOLE][label]:.3f}" for label in MEASURES)
        )
    Console().print(table)
    if options.json:
        provenance = reports[WHOLE][0]["provenance"]
        options.json.write_text(json.dumps({"provenance": provenance, "rounds": options.rounds, "median_s": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
