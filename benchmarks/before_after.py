"""Two states of Engine on one machine, step by step in turns: decode, prefill, throughput and start-up.

    python benchmarks/before_after.py --before ENGINE ARTIFACT --after ENGINE ARTIFACT [--rounds N] [--json FILE]

ENGINE is the program `engine` of each state's own environment (`git worktree add ../before COMMIT`,
then `make demo` there), ARTIFACT what that state built of the same checkpoint. Each state's engine is
loaded into a process of its own, both get the same 48 requests (prompts of 32 to 256 random tokens,
64 tokens of output, 256 tokens a step), and each step is computed by one, then by the other, in an
order of its own: whatever slows the machine, which may be a third for minutes, slows both alike.
`engine bench startup` is run by both in turns. Shown are medians over rounds, and of before over
after: above 1 the state after is faster. Reports, judges nothing.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

# Each state's own engine runs this. RuntimeOptions has lived in two places.
ENGINE = """
import random, sys, time
from pathlib import Path
try:
    from engine.options.runtime import RuntimeOptions
except ModuleNotFoundError:
    from engine.runtime.options import RuntimeOptions
from engine.protocol import SamplingParams, Submit
from engine.runtime.core import EngineCore

core = EngineCore.load(Path(sys.argv[1]), RuntimeOptions(max_num_seqs=64, max_batch_tokens=256), on_phase=lambda *_: None)
params = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "step":
        begin = time.perf_counter()
        done = core.step()
        print(time.perf_counter() - begin, done.stats.step_tokens, int(core.has_work()), flush=True)
    else:
        prompts = random.Random(line)
        for index in range(48):
            tokens = [prompts.randrange(1000) for _ in range(prompts.randrange(32, 257))]
            core.submit(Submit(f"{line}{index}", tokens, params))
        print("submitted", flush=True)
"""
STEP_TOKENS = 256
STATES = ("before", "after")
FULL, DECODE, ALL, START = (
    f"steps of {STEP_TOKENS} tokens",
    "decode steps, 48 sequences or fewer",
    "48 requests, all steps",
    "exec to first token",
)
Pairs = list[tuple[float, float]]
"""Seconds before and after."""


class State:
    """An engine in a process of its own."""

    def __init__(self, engine: Path, artifact: Path) -> None:
        self._engine, self._artifact = engine, artifact
        command = [str(engine.with_name("python")), "-P", "-c", ENGINE, str(artifact)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def ask(self, line: str) -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if not words:
            sys.exit(f"the engine of {self._engine} ended")
        return words

    def close(self) -> None:
        self._process.communicate()

    def start(self) -> Any:
        """The JSON file of one `engine bench startup`."""
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "results.json"
            command = [str(self._engine), "bench", "startup", "--artifacts", str(self._artifact), "--runs", "1", "--json", str(file)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"engine bench startup failed:\n{done.stderr}")
            return json.loads(file.read_bytes())


def steps(states: Sequence[State], round_name: str) -> tuple[Pairs, list[int]]:
    """Every step of 48 requests by both, and how many tokens it computed."""
    for state in states:
        state.ask(round_name)
    pairs, tokens, more = [], [], True
    while more:
        seconds, count = [0.0, 0.0], "0"
        for index in random.sample(range(2), 2):
            took, count, work = states[index].ask("step")
            seconds[index], more = float(took), work == "1"
        pairs.append((seconds[0], seconds[1]))
        tokens.append(int(count))
    return pairs, tokens


def total(pairs: Pairs) -> tuple[float, float]:
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in STATES:
        parser.add_argument(f"--{name}", type=Path, nargs=2, required=True, metavar=("ENGINE", "ARTIFACT"))
    parser.add_argument("--rounds", type=int, default=10, help="(default: 10; about half a minute each)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    figures: dict[str, Pairs] = {name: [] for name in (FULL, DECODE, ALL, START)}
    states = [State(*options.before), State(*options.after)]
    progress = Console(stderr=True)
    for number in track(range(options.rounds), "steps", console=progress):
        pairs, tokens = steps(states, f"round {number}")
        figures[ALL].append(total(pairs))
        figures[FULL] += [pair for pair, count in zip(pairs, tokens, strict=True) if count == STEP_TOKENS]
        figures[DECODE] += [pair for pair, count in zip(pairs, tokens, strict=True) if count <= 48]
    for state in states:
        state.close()
    facts: dict[str, Any] = {}
    for number in track(range(2 * options.rounds), "starts", console=progress):
        seconds = [0.0, 0.0]
        for index in (0, 1) if number % 2 else (1, 0):
            content = states[index].start()
            facts[STATES[index]] = content["provenance"]
            seconds[index] = content["results"]["engine_serve"][0]["first_token"]
        figures[START].append((seconds[0], seconds[1]))
    medians = {
        name: {
            "before_s": statistics.median(before for before, _ in pairs),
            "after_s": statistics.median(after for _, after in pairs),
            "before over after": statistics.median(before / after for before, after in pairs),
        }
        for name, pairs in figures.items()
    }
    table = Table("", "before, ms", "after, ms", "before / after")
    for name, (before, after, ratio) in ((name, values.values()) for name, values in medians.items()):
        table.add_row(name, f"{before * 1e3:,.1f}", f"{after * 1e3:,.1f}", f"{ratio:.3f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if options.json:
        content = {"provenance": facts, "rounds": options.rounds, "medians": medians, "requests": figures[ALL], "starts": figures[START]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
