"""What each graph rewrite gives alone: the same model built without it, measured step by step in turns with the whole.

    python benchmarks/passes.py MODEL --work DIR [--passes A,B] [--decode 1,8,32] [--prefill 512] [--rounds N] [--json FILE]

Every variant is one artifact in DIR (kept, and used again), one for each pass that finds something
in the model. All are loaded into this process, and a round computes one step with each of them, in
an order of its own, so that whatever slows the machine slows all alike. Shown are medians, and the
median over rounds of a step without the pass over the same round's step with all. What cannot be
built without a pass is named. Reports, judges nothing.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from engine.artifacts import CacheGroup, load_manifest
from engine.artifacts.step_arrays import step_arrays, whole_prompts
from engine.bench.provenance import provenance
from engine.options.values import whole_numbers
from engine.passes.pipeline import pipeline
from engine.runtime.batch import StepInputs
from engine.runtime.executor import Executor
from engine.runtime.probe import whole_prompt

ENGINE = Path(sys.executable).with_name("engine")
WHOLE = "all passes"
KV_MEMORY = 128 << 20
CONTEXT = 128
Times = dict[str, list[float]]
"""Seconds of a step in each round, by variant."""


def build(model: str, artifact: Path, store: Path, disabled: str | None = None) -> str | None:
    """Build what is not there yet; why it could not be built, if so."""
    if (artifact / "manifest.json").exists():
        return None
    print(f"building {f'without {disabled}' if disabled else 'with all passes'}", file=sys.stderr, flush=True)
    leave_out = ["--disable-pass", disabled] if disabled else []
    command = [str(ENGINE), "build", model, "-o", str(artifact), "--store", str(store), *leave_out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = done.stderr.splitlines()
    return next((line for line in said if line.startswith("error: ")), f"exited with {done.returncode}")


def build_all(model: str, work: Path, store: Path, names: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Artifacts with all passes and without each of `names` that finds something in the model; why some could not be built."""
    whole, failures = work / "all", dict[str, str]()
    if (reason := build(model, whole, store)) is not None:
        sys.exit(reason)
    artifacts = {WHOLE: whole}
    matched = {report.name for report in load_manifest(whole).fusion if report.matches}
    for name in filter(matched.__contains__, names):
        if (reason := build(model, work / name, store, name)) is None:
            artifacts[name] = work / name
        else:
            failures[name] = reason
    return artifacts, failures


def decode(sequences: int, groups: Sequence[CacheGroup]) -> StepInputs:
    """A step of one token for each of some sequences of CONTEXT tokens, whose blocks lie one after another."""
    sizes = {group.name: group.block_size for group in groups}
    pieces = whole_prompts([[row] * CONTEXT for row in range(sequences)], sizes)
    return StepInputs(step_arrays([piece._replace(start=CONTEXT - 1) for piece in pieces], sizes))


def measure(executors: Mapping[str, Executor], inputs: StepInputs, rounds: int) -> Times:
    """One step with each executor per round, after two that nobody times."""
    times: Times = {name: [] for name in executors}
    for number in range(rounds + 2):
        for name in random.sample(list(executors), len(executors)):
            begin = time.perf_counter()
            executors[name].step(inputs)
            if number >= 2:
                times[name].append(time.perf_counter() - begin)
    return times


def ratio(times: Times, name: str) -> float:
    """How long a step takes without a pass, as a multiple of the same round's with all."""
    return statistics.median(without / whole for without, whole in zip(times[name], times[WHOLE], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--store", type=Path, metavar="DIR", help="what compiled code is kept in (default: store in --work)")
    parser.add_argument("--passes", type=lambda text: text.split(","), metavar="A,B", help="only these (default: all that can be left out)")
    parser.add_argument(
        "--decode", type=whole_numbers, default=(1, 8, 32), metavar="N,N", help="sequences of a decode step (default: 1,8,32)"
    )
    parser.add_argument("--prefill", type=whole_numbers, default=(512,), metavar="N,N", help="tokens of a prefill (default: 512)")
    parser.add_argument("--rounds", type=int, default=200, help="steps of each variant; a tenth as many prefills (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    optional = [item.name for item in pipeline({}) if not item.required]
    if unknown := set(options.passes or ()) - {*optional}:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(optional)}")
    artifacts, failures = build_all(options.model, options.work, options.store or options.work / "store", options.passes or optional)
    executors = {name: Executor.load(artifact, kv_memory=KV_MEMORY) for name, artifact in artifacts.items()}
    groups = executors[WHOLE].manifest.caches
    measured = {f"decode {count}": measure(executors, decode(count, groups), options.rounds) for count in options.decode}
    for tokens in options.prefill:
        inputs = whole_prompt(list(range(tokens)), groups)
        measured[f"prefill {tokens}"] = measure(executors, inputs, max(1, options.rounds // 10))
    table = Table("without", *(column for label in measured for column in (f"{label}, ms", "ratio")))
    for name in executors:
        figures = [(f"{statistics.median(times[name]) * 1e3:.2f}", f"{ratio(times, name):.3f}") for times in measured.values()]
        table.add_row(name, *(text for pair in figures for text in pair))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for name, reason in failures.items():
        console.print(f"cannot be built without {name}: {reason}", markup=False, highlight=False)
    if options.json:
        rows = {
            name: {label: {"median_s": statistics.median(t[name]), "ratio": ratio(t, name)} for label, t in measured.items()}
            for name in executors
        }
        facts = {
            "provenance": msgspec.to_builtins(provenance(artifacts[WHOLE])),
            "rounds": options.rounds,
            "without": rows,
            "failures": failures,
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
