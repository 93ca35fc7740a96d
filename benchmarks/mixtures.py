"""Mixtures of experts and latent attention, without anybody's weights: Engine beside llama.cpp on one random file, passes, and builds.

    python benchmarks/mixtures.py SHAPE --tokenizer FILE.gguf --work DIR [--layers N] [--json FILE]
    python benchmarks/mixtures.py SHAPE --tokenizer FILE.gguf --work DIR --passes [--rounds N] [--json FILE]
    python benchmarks/mixtures.py SHAPE --tokenizer FILE.gguf --work DIR --build [--json FILE]

SHAPE is one of random_gguf.py's, cut to some layers; FILE gives it a tokenizer. The first form asks
both servers for the same (`benchmarks/peers`, which keeps llama.cpp in DIR): decode of one client, a
prompt of 1,500 tokens, eight clients. Then it takes decode steps of one sequence in Engine's own loop
(`engine bench latency`): the bytes that they must read per second, as a share of the bandwidth at
which this machine reads memory, and of latent attention how much longer a step takes at 8,000 tokens
of context than at 100. --passes times steps without each rewrite of experts and latents
(`benchmarks/passes.py`). --build measures the memory of a build with an empty store, and counts the
segments of 48 layers. What is in DIR already is used again. Reports, judges nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.console import Console

from engine.artifacts import Manifest, load_manifest
from engine.artifacts.manifest import DTYPE_BYTES
from engine.bench.processes import anonymous_bytes
from engine.bench.provenance import provenance
from engine.bench.report import Report, Table, show, write_json

HERE = Path(__file__).resolve().parent
ENGINE = Path(sys.executable).with_name("engine")
TYPES = {"qwen3-30b-a3b": "Q4_K", "gpt-oss-20b": "MXFP4", "deepseek-v2-lite": "Q4_K", "glm-4.7-flash": "Q4_K"}
"""What most matrices of a shape's file are."""
ENGINE_NAME, OTHER_NAME = "Engine", "llama.cpp"
CLIENTS = 8
CONTEXTS = (100, 8000)
PASSES = ("absorb_latent", "route_experts", "group_experts", "combine_experts", "join_shared_expert", "merge_sibling_linears")
BATCHES, PREFILL = (1, 8), 256
MANY_LAYERS = 48
_POLL_S = 0.02
_SEGMENTS = """
import json, sys
from engine.artifacts import parse_target, this_machine_flags
from engine.compiler.progress import Reporter
from engine.compiler.step_program import Wanted, make_program
from engine.compiler.target_kind import kind_of
from engine.compiler.weight_formats import choose_formats
from engine.models.open import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1], weights=False)
kind = kind_of(parse_target("cpu", machine_flags=this_machine_flags()))
formats = choose_formats(checkpoint, "none", kind.layout)
wanted = Wanted.of(checkpoint, formats, kv_dtype=kind.kv_dtype("auto", checkpoint, formats), kind=kind, disable_pass=())
parts = make_program(wanted, None, Reporter(quiet=True)).parts
print(json.dumps({"layers": len(checkpoint.spec.layers), "segments": len(parts.forms), "calls": len(parts.calls)}))
"""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One server. Tokens per second: of one client's decode, of a long prompt until the first token, of the output of several clients."""

    decode: float
    prefill: float
    clients: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Decode steps of one sequence of `context` tokens. read_share: of the bandwidth, None where that could not be measured."""

    context: int
    seconds: float
    bytes_read: int
    read_share: float | None


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """peers, latency: what the two benchmarks wrote, every run in it."""

    served: dict[str, Served]
    steps: list[Step]
    peers: Any
    latency: Any


class Segments(msgspec.Struct, frozen=True, kw_only=True):
    layers: int
    segments: int
    calls: int


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """Of a build with an empty store, in bytes.

    resident: the largest process, by the kernel's account of the build and all that it started; pages of mapped files, which can be
    dropped, are in it. anonymous: all processes together without those, looked at every 20 ms. layer: packed weights of the largest one.
    """

    seconds: float
    resident: int
    anonymous: int
    layer: int


class MixtureResults(msgspec.Struct, kw_only=True):
    """passes: what benchmarks/passes.py wrote."""

    serving: Serving | None = None
    passes: Any = None
    build: Build | None = None
    segments: Segments | None = None


def run(command: Sequence[object]) -> None:
    """What it prints goes to standard error. Ends this program if it fails."""
    done = subprocess.run([*map(str, command)], stdout=sys.stderr, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {Path(str(command[0])).name} exited with {done.returncode}: {' '.join(map(str, command))}")


def run_program(program: str, *arguments: object) -> None:
    """One of this folder."""
    run([sys.executable, HERE / program, *arguments])


def write_model(options: argparse.Namespace, layers: int, *, weights: bool = True) -> Path:
    """The shape's file, cut to some layers, unless it is there. Its name ends as those of published files do."""
    kind = TYPES[options.shape] if weights else "header"
    file: Path = options.place / f"{options.shape}-{layers}.{kind}.gguf"
    if not file.exists():
        unfinished = file.with_suffix(".partial")
        hole = () if weights else ("--no-weights",)
        run_program("random_gguf.py", options.shape, "--layers", layers, "--tokenizer", options.tokenizer, "-o", unfinished, *hole)
        unfinished.rename(file)
    return file


def build_artifact(model: Path, place: Path) -> Path:
    artifact = place / model.stem
    if not (artifact / "manifest.json").exists():
        run([ENGINE, "build", model, "-o", artifact, "--store", place / "store"])
    return artifact


def measure_serving(options: argparse.Namespace, model: Path, artifact: Path) -> Serving:
    peers, latency = options.place / "peers.json", options.place / "latency.json"
    load = ["--phases", "single,ttft,throughput", "--clients", CLIENTS, "--runs", options.runs, "--threads", options.threads]
    same = ["--artifacts", artifact, "--gguf", model, "--work", options.work, "--peers", "engine,llama.cpp", "--random-weights"]
    only = ["--weights", TYPES[options.shape], *(["--tiny"] if options.tiny else [])]
    run_program("peers", *same, *load, *only, "--json", peers)
    is_latent = any(group.kind == "latent" for group in load_manifest(artifact).caches)
    contexts = ",".join(map(str, CONTEXTS if is_latent else CONTEXTS[:1]))
    steps = ["--batch", 1, "--context", contexts, "--prefill", 128, "--runs", 1, "--threads", options.threads]
    run([ENGINE, "bench", "latency", "--artifacts", artifact, *steps, "--json", latency])
    told, timed = json.loads(peers.read_bytes()), json.loads(latency.read_bytes())
    return Serving(served=served(told), steps=steps_of(timed["results"]), peers=told, latency=timed)


def served(told: Mapping[str, Any]) -> dict[str, Served]:
    """The medians of each peer that did all that was asked of it. told: the file of benchmarks/peers."""
    prompt = told["settings"]["load"]["ttft_prompt"]
    return {
        one["peer"]: Served(
            decode=1 / one["single"]["summary"]["tpot"]["p50"],
            prefill=prompt / one["ttft"]["summary"]["ttft"]["p50"],
            clients=median(run["summary"]["output_tokens_per_s"] for run in one["throughput"][str(CLIENTS)]),
        )
        for one in told["results"]["measured"]
        if one["error"] is None
    }


def steps_of(results: Mapping[str, Any]) -> list[Step]:
    """results: those of `engine bench latency`."""
    limit = results["limits"] and results["limits"]["read_bytes"]
    found = []
    for row in results["decode"]:
        seconds, read = median(row["step_s"]), row["weight_bytes"] + row["kv_bytes"]
        share = read / seconds / limit if limit else None
        found.append(Step(context=row["context"], seconds=seconds, bytes_read=read, read_share=share))
    return found


def measure_passes(options: argparse.Namespace, model: Path) -> Any:
    file = options.place / "passes.json"
    steps = ["--decode", ",".join(map(str, BATCHES)), "--prefill", PREFILL, "--rounds", options.rounds]
    place = ["--work", options.place / f"{model.stem}-passes", "--store", options.place / "store"]
    run_program("passes.py", model, *place, "--passes", ",".join(PASSES), *steps, "--json", file)
    return json.loads(file.read_bytes())


def measure_build(model: Path, place: Path) -> Build:
    """Build with an empty store; the artifact stays."""
    artifact, store = place / f"{model.stem}-cold", place / "cold-store"
    shutil.rmtree(store, ignore_errors=True)
    seconds, resident, anonymous = peak_memory([ENGINE, "build", model, "-o", artifact, "--force", "--store", store])
    return Build(seconds=seconds, resident=resident, anonymous=anonymous, layer=largest_layer(load_manifest(artifact)))


def peak_memory(command: Sequence[object]) -> tuple[float, int, int]:
    """Seconds that a command takes, then `resident` and `anonymous` as `Build` has them. Ends this program if it fails.

    The kernel counts a process from before its exec, so `resident` is no less than this program's own, which is small.
    """
    begin, anonymous = time.perf_counter(), 0
    process = subprocess.Popen([*map(str, command)], stdout=sys.stderr)
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, anonymous_bytes(process.pid))
        time.sleep(_POLL_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"error: {Path(str(command[0])).name} exited with {process.returncode}")
    return time.perf_counter() - begin, used.ru_maxrss * 1024, anonymous


def largest_layer(manifest: Manifest) -> int:
    """Bytes of the packed weights of the layer that has most."""
    layers: dict[str, int] = {}
    for name, weight in manifest.weights.items():
        if name.startswith("layers."):
            layer = name.split(".")[1]
            layers[layer] = layers.get(layer, 0) + prod(weight.shape) * DTYPE_BYTES[weight.dtype]
    return max(layers.values())


def count_segments(model: Path) -> Segments:
    """Of the model's step, by tracing alone, in a process of its own."""
    done = subprocess.run([sys.executable, "-P", "-c", _SEGMENTS, str(model)], stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Segments)


def tables(results: MixtureResults) -> list[Table]:
    found = []
    if (serving := results.serving) is not None:
        found += [_served_table(serving.served), _steps_table(serving.steps)]
    if results.passes is not None:
        found.append(_passes_table(results.passes))
    if results.build is not None and results.segments is not None:
        found.append(_build_table(results.build, results.segments))
    return found


def _served_table(served: Mapping[str, Served]) -> Table:
    ours, theirs = served.get(ENGINE_NAME), served.get(OTHER_NAME)
    titles = {"decode": "decode, one client", "prefill": "prompt, one client", "clients": f"output of {CLIENTS} clients"}
    rows = []
    for field, title in titles.items():
        values = [getattr(one, field) if one else None for one in (ours, theirs)]
        ratio = f"{values[0] / values[1]:.2f}" if values[0] and values[1] else "-"
        rows.append((title, *(f"{value:,.1f}" if value else "-" for value in values), ratio))
    return Table(title="Tokens per second, medians", columns=("", ENGINE_NAME, OTHER_NAME, "ratio"), rows=rows)


def _steps_table(steps: Sequence[Step]) -> Table:
    first = steps[0]
    rows = [
        (
            f"{step.context:,}",
            f"{step.seconds * 1e3:.2f}",
            f"{step.seconds / first.seconds:.2f}",
            f"{step.bytes_read / 1e6:,.1f}",
            "-" if step.read_share is None else f"{step.read_share:.0%}",
        )
        for step in steps
    ]
    columns = ("context", "ms/step", f"over that at {first.context:,}", "MB read", "of read bandwidth")
    return Table(title="Decode steps of one sequence, Engine", columns=columns, rows=rows)


def _passes_table(told: Mapping[str, Any]) -> Table:
    """told: the file of benchmarks/passes.py."""
    variants: dict[str, dict[str, dict[str, float]]] = told["without"]
    labels = [*next(iter(variants.values()))]
    rows = [
        (name, *(text for label in labels for text in (f"{steps[label]['median_s'] * 1e3:.2f}", f"{steps[label]['ratio']:.3f}")))
        for name, steps in variants.items()
    ]
    notes = [f"cannot be built without {name}: {reason}" for name, reason in told["failures"].items()]
    columns = ("without", *(column for label in labels for column in (f"{label}, ms", "ratio")))
    return Table(title="Steps without a rewrite", columns=columns, rows=rows, notes=notes)


def _build_table(build: Build, segments: Segments) -> Table:
    sizes = {"largest process, resident": build.resident, "all processes, without mapped files": build.anonymous}
    rows = [(name, f"{size / 1e6:,.0f}", f"{size / build.layer:.2f}") for name, size in sizes.items()]
    notes = [
        f"largest layer: {build.layer / 1e6:,.1f} MB; {build.seconds:.0f} s with an empty store",
        f"{segments.layers} layers: {segments.segments} segments, {segments.calls} calls a step",
    ]
    return Table(title="Peak memory of a build", columns=("", "MB", "of the largest layer"), rows=rows, notes=notes)


def main(argv: Sequence[str] | None = None) -> None:
    options = _parse(argv)
    options.place = options.work / "mixtures"
    options.place.mkdir(parents=True, exist_ok=True)
    facts, results = provenance(), MixtureResults()
    layers = options.layers or (2 if options.passes or options.build else 8)
    model = write_model(options, layers)
    if options.passes:
        results.passes = measure_passes(options, model)
    if options.build:
        results.build = measure_build(model, options.place)
        results.segments = count_segments(write_model(options, MANY_LAYERS, weights=False))
    if not (options.passes or options.build):
        artifact = build_artifact(model, options.place)
        facts = msgspec.structs.replace(facts, artifact=provenance(artifact).artifact)
        results.serving = measure_serving(options, model, artifact)
    settings = {name: value for name, value in vars(options).items() if name not in ("place", "json")} | {"layers": layers}
    warnings = results.serving.peers["warnings"] if results.serving is not None else ()
    report = Report(benchmark="mixtures", tables=tables(results), settings=settings, results=results, provenance=facts, warnings=warnings)
    show(report, Console(width=None if sys.stdout.isatty() else 140))
    if options.json:
        write_json(report, options.json)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/mixtures.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("shape", choices=[*TYPES], metavar="SHAPE", help=", ".join(TYPES))
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="a GGUF file whose tokenizer the model gets")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="as of benchmarks/peers; ours goes to DIR/mixtures")
    parser.add_argument("--layers", type=int, metavar="N", help="of the model (default: 8; with --passes or --build 2)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of each server (default: 2)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of the load of several clients (default: 3)")
    parser.add_argument(
        "--rounds", type=int, default=40, metavar="N", help="steps without each pass; a tenth as many prefills (default: 40)"
    )
    parser.add_argument("--passes", action="store_true", help="time steps without each rewrite instead")
    parser.add_argument("--build", action="store_true", help="measure builds instead")
    parser.add_argument("--tiny", action="store_true", help="a load that only shows that everything works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured, with provenance, to FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
