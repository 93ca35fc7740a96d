"""What a build costs when the store has nothing, when it has everything, and when only the weights are new.

    python benchmarks/startup.py MODEL.gguf --work DIR [--cold N] [--rounds N] [--json FILE]

MODEL is built with an empty store, then again; then a second checkpoint of the same architecture,
written here, a copy of MODEL with other quants in its blocks; then that one's weights are packed into
MODEL's code (`engine pack`). Each in a process of its own, from exec to exit; the last three in
turns. A build with everything in the store that compiles a segment ends the benchmark with an error.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from gguf import GGMLQuantizationType
from rich.console import Console
from rich.table import Table

from engine.bench.provenance import provenance
from engine.models.storage.gguf_header import read_gguf_header

COLD, WARM, OTHER, PACK = "cold store", "warm store", "warm store, other weights", "engine pack, other weights"
_BUILD = """
import dataclasses, json, sys
from pathlib import Path
from engine.compiler.build import build
from engine.compiler.options import BuildOptions
model, output, store = sys.argv[1:]
print(json.dumps(dataclasses.asdict(build(BuildOptions(model=model, output=Path(output), store=Path(store), force=True)))))
"""
_PACK = """
import dataclasses, json, sys
from pathlib import Path
from engine.compiler.add_weights import add_weights
from engine.compiler.options import PackOptions
model, output, code = sys.argv[1:]
print(json.dumps(dataclasses.asdict(add_weights(PackOptions(code=Path(code), weights_from=model, output=Path(output), force=True)))))
"""
BLOCKS = {GGMLQuantizationType.Q4_0: (18, 2), GGMLQuantizationType.Q4_1: (20, 4), GGMLQuantizationType.Q8_0: (34, 2)}
"""Bytes of a block, and of the scales with which it begins: those stay, so that all values stay of the same size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One process. wall_s: from exec to exit; stages: seconds of each, without what is imported before the first."""

    wall_s: float
    stages: dict[str, float]
    segments_compiled: int
    segments_reused: int


def run(code: str, *arguments: str) -> Run:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], stdout=subprocess.PIPE, check=True)
    wall = time.perf_counter() - begin
    told = json.loads(done.stdout)
    return Run(wall_s=wall, stages=told["seconds"], segments_compiled=told["segments_compiled"], segments_reused=told["segments_reused"])


def write_other_weights(model: Path, path: Path, seed: int = 0) -> Path:
    """A copy of a GGUF file whose quantized blocks hold other quants under the same scales."""
    shutil.copyfile(model, path)
    random = np.random.default_rng(seed)
    for tensor in read_gguf_header(path).tensors.values():
        if tensor.type in BLOCKS:
            size, scales = BLOCKS[tensor.type]
            blocks = np.memmap(path, np.uint8, "r+", tensor.offset, (tensor.size // size, size))
            blocks[:, scales:] = random.permuted(blocks[:, scales:], axis=1)
            blocks.flush()
    return path


def measure(model: Path, work: Path, cold: int, rounds: int) -> dict[str, list[Run]]:
    other = write_other_weights(model, work / "other.gguf")
    store, code = work / "store", work / "artifact"
    runs: dict[str, list[Run]] = {name: [] for name in (COLD, WARM, OTHER, PACK)}
    for _ in range(cold):
        shutil.rmtree(store, ignore_errors=True)
        runs[COLD].append(run(_BUILD, str(model), str(code), str(store)))
    for _ in range(rounds):
        runs[WARM].append(run(_BUILD, str(model), str(code), str(store)))
        runs[OTHER].append(run(_BUILD, str(other), str(work / "other"), str(store)))
        runs[PACK].append(run(_PACK, str(other), str(work / "packed"), str(code)))
    for name in (WARM, OTHER, PACK):
        if any(each.segments_compiled for each in runs[name]):
            sys.exit(f"error: {name}: a segment was compiled that the store should have")
    return runs


def median(runs: list[Run]) -> float:
    return statistics.median(each.wall_s for each in runs)


def table(runs: dict[str, list[Run]]) -> Table:
    stages = list(runs[COLD][0].stages)
    columns = ("", "s, exec to exit", "of cold", "compiled", "reused", *stages)
    shown = Table(*columns)
    for name, measured in runs.items():
        last = measured[-1]
        seconds = [statistics.median(each.stages.get(stage, 0.0) for each in measured) for stage in stages]
        figures = (f"{median(measured):.2f}", f"{median(measured) / median(runs[COLD]):.3f}")
        shown.add_row(name, *figures, str(last.segments_compiled), str(last.segments_reused), *(f"{value:.2f}" for value in seconds))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cold", type=int, default=1, metavar="N", help="builds with an empty store (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each of the others (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    before = provenance()
    runs = measure(options.model, options.work, options.cold, options.rounds)
    Console(width=None if sys.stdout.isatty() else 180).print(table(runs))
    if options.json:
        facts = msgspec.structs.replace(before, artifact=provenance(options.work / "artifact").artifact)
        rows = {
            name: {
                "median_s": median(each),
                "of_cold": median(each) / median(runs[COLD]),
                "runs": [dataclasses.asdict(one) for one in each],
            }
            for name, each in runs.items()
        }
        options.json.write_text(json.dumps({"provenance": msgspec.to_builtins(facts), "builds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
