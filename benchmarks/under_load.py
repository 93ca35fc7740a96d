"""What a busy server's other clients notice: of a worker that is killed, and of prompts that are long.

    python benchmarks/under_load.py ARTIFACT [--seconds N] [--pairs-of-kills N] [--json FILE]

A death: 64 clients ask one short request after the other, and in the middle of it the worker gets
SIGKILL. Shown are tokens per second before it and from a few seconds after it, the longest time
without any token, and how many requests failed. Long prompts: 20 clients ask with as many tokens as
the model's context holds, 6,000 at most, while one client asks short requests, one after the other;
shown are how long these wait for their token, in seconds and in steps, under both policies. Reports, judges nothing.

With --pairs-of-kills nothing of that, but 8 clients that read one stream after the other, half of them sampled with a
seed, while the worker gets SIGKILL and the next one again 0.1 to 3 s later, N times. Shown are how many streams
failed, and how many had another text than without any kills.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import time
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from engine.artifacts import load_manifest
from engine.bench.client import Result, run
from engine.bench.engine_server import EngineServer
from engine.bench.processes import family
from engine.bench.provenance import provenance
from engine.bench.workload import Request, open_tokenizer, random_requests

CLIENTS, LONG_CLIENTS, LONG_TOKENS, SHORT_TOKENS, SHORTS = 64, 20, 6000, 32, 60
SETTLED_S = 5.0
"""How long after a death the rate is that of a server that had none."""
KILL_CLIENTS, KILL_REQUESTS, SAMPLED = 8, 16, {"temperature": 1, "seed": 7}
BETWEEN_KILLS_S, BETWEEN_PAIRS_S, STEPS_BETWEEN_PAIRS = (0.1, 3.0), (1.0, 3.0), 8
"""Seconds between pairs are from when the streams have gone on for so many steps."""


def death(artifact: Path, seconds: float) -> dict[str, Any]:
    """Times are seconds, rates tokens per second."""
    requests = random_requests(open_tokenizer(artifact), 4000, (32, 64), (32, 32), seed=1)
    with EngineServer(artifact, ["--max-num-seqs", str(CLIENTS)]) as server:
        server.wait_until_ready()
        results, killed_s = asyncio.run(_with_a_death(server, requests, seconds))
    times = sorted(time for result in results for time in result.token_times_s)
    warm = seconds / 8
    return {
        "tokens_per_s_before": _rate(times, warm, killed_s),
        "tokens_per_s_after": _rate(times, killed_s + SETTLED_S, seconds),
        "longest_pause_s": max(later - time for time, later in pairwise(times)),
        "completed": sum(result.completed for result in results),
        "failed": sum(result.error is not None for result in results),
    }


async def _with_a_death(server: EngineServer, requests: Sequence[Request], seconds: float) -> tuple[list[Result], float]:
    async def kill() -> float:
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds / 2)
        (worker,) = family(server.pid)[1:]
        os.kill(worker, signal.SIGKILL)
        return asyncio.get_running_loop().time() - begun

    killing = asyncio.create_task(kill())
    results = await run(server.url, _model(server), requests, concurrency=CLIENTS, time_limit_s=seconds)
    return results, await killing


def _rate(times: Sequence[float], begin: float, end: float) -> float:
    return sum(begin <= time < end for time in times) / (end - begin)


def long_prompts(artifact: Path, scheduling: str, seconds: float) -> dict[str, Any]:
    """How long short requests wait: medians and the 99th of a hundred."""
    tokenizer, most = open_tokenizer(artifact), load_manifest(artifact).model.max_context
    size = min(LONG_TOKENS, most - 64)
    longs = random_requests(tokenizer, 200, (size, size), (1, 1), seed=2)
    shorts = random_requests(tokenizer, SHORTS, (SHORT_TOKENS, SHORT_TOKENS), (1, 1), seed=3, part=1)
    with EngineServer(artifact, ["--scheduling", scheduling]) as server:
        server.wait_until_ready()
        waits, steps = asyncio.run(_beside(server, longs, shorts, seconds))
    return {
        "scheduling": scheduling,
        "asked": len(waits),
        "seconds": {"median": statistics.median(waits), "p99": _p99(waits)},
        "steps": {"median": statistics.median(steps), "p99": _p99(steps)},
    }


def pairs_of_kills(artifact: Path, pairs: int) -> dict[str, Any]:
    """Streams that failed, and that differ from those of an undisturbed run. longest_pause_s: of a stream."""
    requests = random_requests(open_tokenizer(artifact), 2 * KILL_REQUESTS, (16, 64), (32, 128), seed=4)
    with EngineServer(artifact, ["--max-num-seqs", str(KILL_CLIENTS), "--verify-weights", "off"]) as server:
        server.wait_until_ready()
        expected = [result.text for result in asyncio.run(_streams(server, requests))]
        streams = asyncio.run(_with_pairs_of_kills(server, requests, pairs))
        restarts = _metric(server, "engine_worker_restarts_total")
    pauses = [later - time for result in streams for time, later in pairwise(result.token_times_s)]
    return {
        "pairs": pairs,
        "restarts": int(restarts),
        "streams": len(streams),
        "failed": sum(not result.completed for result in streams),
        "different": sum(result.text != expected[i % len(expected)] for i, result in enumerate(streams)),
        "longest_pause_s": max(pauses),
        "errors": sorted({result.error for result in streams if result.error is not None}),
    }


async def _streams(server: EngineServer, requests: Sequence[Request]) -> list[Result]:
    """All of them once, the second half sampled; each half by half of the clients."""
    model, clients = _model(server), KILL_CLIENTS // 2
    greedy = run(server.url, model, requests[:KILL_REQUESTS], concurrency=clients)
    sampled = run(server.url, model, requests[KILL_REQUESTS:], concurrency=clients, extra_body=SAMPLED)
    return [result for half in await asyncio.gather(greedy, sampled) for result in half]


async def _with_pairs_of_kills(server: EngineServer, requests: Sequence[Request], pairs: int) -> list[Result]:
    """The results of `_streams`, again and again until all kills are done."""
    killing = asyncio.create_task(_kill_in_pairs(server, pairs))
    results: list[Result] = []
    while not killing.done():
        results += await _streams(server, requests)
    await killing
    return results


async def _kill_in_pairs(server: EngineServer, pairs: int) -> None:
    draw = random.Random(5)
    for _ in range(pairs):
        await asyncio.sleep(draw.uniform(*BETWEEN_PAIRS_S))
        first = await _kill_worker(server, None)
        await asyncio.sleep(draw.uniform(*BETWEEN_KILLS_S))
        await _kill_worker(server, first)
        await asyncio.to_thread(_wait_for_steps, server)


def _wait_for_steps(server: EngineServer) -> None:
    """By a worker that has taken the place of another."""
    begin = _metric(server, "engine_steps_total")
    while _metric(server, "engine_steps_total") < begin + STEPS_BETWEEN_PAIRS:
        time.sleep(0.05)


async def _kill_worker(server: EngineServer, killed: int | None) -> int:
    """Another one than was killed before. The process that got it."""
    while (worker := next(iter(family(server.pid)[1:]), killed)) == killed:
        await asyncio.sleep(0.01)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    return worker


async def _beside(
    server: EngineServer, longs: Sequence[Request], shorts: Sequence[Request], seconds: float
) -> tuple[list[float], list[float]]:
    model = _model(server)
    others = asyncio.create_task(run(server.url, model, longs, concurrency=LONG_CLIENTS, time_limit_s=seconds))
    await asyncio.sleep(3)
    waits: list[float] = []
    steps: list[float] = []
    for request in shorts:
        if others.done():
            break
        before = await asyncio.to_thread(_metric, server, "engine_steps_total")
        (result,) = await run(server.url, model, [request])
        if not result.token_times_s:
            raise SystemExit(f"a short request failed: {result.error}")
        waits.append(result.token_times_s[0] - result.start_s)
        steps.append(await asyncio.to_thread(_metric, server, "engine_steps_total") - before)
    others.cancel()
    await asyncio.gather(others, return_exceptions=True)
    return waits, steps


def _metric(server: EngineServer, name: str) -> float:
    found = re.search(rf"^{name} (\S+)", _get(server, "/metrics"), re.MULTILINE)
    assert found is not None
    return float(found[1])


def _model(server: EngineServer) -> str:
    name: str = json.loads(_get(server, "/v1/models"))["data"][0]["id"]
    return name


def _get(server: EngineServer, path: str) -> str:
    with urllib.request.urlopen(f"{server.url}{path}") as response:
        text: str = response.read().decode()
    return text


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[max(0, -(-99 * len(values) // 100) - 1)]


def show(found: dict[str, Any]) -> None:
    console = Console()
    if "pairs_of_kills" in found:
        console.print(_row(found["pairs_of_kills"], "workers are killed in pairs beside 8 clients"))
        return
    waits = Table("scheduling", "asked", "s, median", "s, p99", "steps, median", "steps, p99", title="short requests beside long prompts")
    for each in found["long_prompts"]:
        figures = [f"{each[unit][of]:.2f}" for unit in ("seconds", "steps") for of in ("median", "p99")]
        waits.add_row(each["scheduling"], str(each["asked"]), *figures)
    console.print(_row(found["death"], "a worker is killed beside 64 clients"))
    console.print(waits)


def _row(one: dict[str, Any], title: str) -> Table:
    table = Table(*(name.replace("_", " ") for name in one), title=title)
    table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in one.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=40.0, help="how long each load lasts (default: 40)")
    parser.add_argument("--pairs-of-kills", type=int, metavar="N", help="instead: kill workers in so many pairs under streams")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    found: dict[str, Any] = {"provenance": msgspec.to_builtins(provenance(options.artifact))}
    if options.pairs_of_kills is not None:
        found["pairs_of_kills"] = pairs_of_kills(options.artifact, options.pairs_of_kills)
    else:
        found["death"] = death(options.artifact, options.seconds)
        found["long_prompts"] = [long_prompts(options.artifact, scheduling, options.seconds) for scheduling in ("fcfs", "fair")]
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
