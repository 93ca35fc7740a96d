"""One worker with all threads against several that share them, in turns, under the same load.

    python benchmarks/replicas.py ARTIFACT [--replicas 2] [--clients 32] [--rounds 3] [--json FILE]

Shown are tokens per second and the time to the first token, each a median over the rounds, and what memory each further worker
takes for itself before it has served anything (its KV cache comes to that, as it is used).
"""

import argparse
import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from engine.artifacts import load_manifest
from engine.bench.client import run
from engine.bench.engine_server import EngineServer
from engine.bench.metrics import span, summarize
from engine.bench.processes import family
from engine.bench.provenance import provenance
from engine.bench.workload import open_tokenizer, random_requests
from engine.cpus import cores_of, usable_cpus

PROMPT, OUTPUT, REQUESTS_PER_CLIENT = (32, 256), 64, 3


def once(artifact: Path, replicas: int, clients: int, seed: int) -> dict[str, Any]:
    """Rates are tokens per second, times seconds, memory bytes of each worker."""
    threads = len(cores_of(usable_cpus()))
    requests = random_requests(open_tokenizer(artifact), REQUESTS_PER_CLIENT * clients, PROMPT, (OUTPUT, OUTPUT), seed=seed)
    flags = ["--replicas", str(replicas), "--threads", str(max(threads, replicas)), "--verify-weights", "off"]
    with EngineServer(artifact, flags) as server:
        server.wait_until_all_are_well(replicas)
        own = [private_bytes(worker) for worker in family(server.pid)[1:]]
        model = load_manifest(artifact).model.name
        asyncio.run(run(server.url, model, requests[:clients], concurrency=clients))  # to have everything in memory
        results = asyncio.run(run(server.url, model, requests[clients:], concurrency=clients))
    if failed := [result.error for result in results if not result.completed]:
        raise SystemExit(f"a request failed: {failed[0]}")
    summary = summarize(results, span(results))
    return {
        "replicas": replicas,
        "tokens_per_s": summary.output_tokens_per_s,
        "ttft_s": msgspec.to_builtins(summary.ttft),
        "own_bytes": own,
    }


def private_bytes(pid: int) -> int:
    """Memory that no other process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def show(rounds: list[dict[str, Any]]) -> None:
    table = Table("workers", "tokens/s", "TTFT p50, s", "TTFT p99, s", "memory of one, MB")
    for replicas in dict.fromkeys(each["replicas"] for each in rounds):
        of = [each for each in rounds if each["replicas"] == replicas]
        figures = [[each["tokens_per_s"] for each in of], *([each["ttft_s"][name] for each in of] for name in ("p50", "p99"))]
        own = max(max(each["own_bytes"]) for each in of) / 1e6
        table.add_row(str(replicas), *(f"{statistics.median(values):.2f}" for values in figures), f"{own:.0f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--replicas", type=int, default=2, metavar="N", help="how many workers share the machine (default: 2)")
    parser.add_argument("--clients", type=int, default=32, metavar="N", help="that ask one request after the other (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of both in turns (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    rounds = [
        once(options.artifact, replicas, options.clients, seed) for seed in range(options.rounds) for replicas in (1, options.replicas)
    ]
    show(rounds)
    if options.json is not None:
        found = {"provenance": msgspec.to_builtins(provenance(options.artifact)), "rounds": rounds}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
