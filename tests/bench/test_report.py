"""What a benchmark leaves behind: tables, JSON, the facts it belongs to, plots."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import write_artifact
from checkout import ROOT
from rich.console import Console

from engine.artifacts import load_manifest
from engine.bench import latency_results as latency
from engine.bench import plot
from engine.bench import serve_results as serve
from engine.bench.limits import Limits, describe_limits, last_cache_bytes, measure_limits, share_of_read
from engine.bench.metrics import Slo, summarize
from engine.bench.processes import family, usage
from engine.bench.provenance import Provenance, _commit, provenance
from engine.bench.report import Report, Spread, Table, show, write_json
from engine.bench.serve_tables import tables
from engine.bench.stream import Result
from engine.errors import UsageError

LIMITS = Limits(threads=2, read_bytes=67e9, int8_macs=1e12, bfloat16_macs=500e9, float32_macs=250e9)


def report(benchmark: str, results: Any) -> Report:
    table = Table(title="A table", columns=("load", "tok/s"), rows=[("1 client", "12.5")], notes=["a note"])
    return Report(
        benchmark=benchmark, tables=[table], settings={"file": Path("/a/b")}, results=results, provenance=provenance(), warnings=["odd"]
    )


def serve_results(loads: list[dict[str, Any]], slo: Slo | None = None) -> serve.ServeResults:
    answers = [Result(prompt_tokens=8, output_tokens=3, start_s=0.0, token_times_s=[0.1, 0.2, 0.4], end_s=0.5, wanted_tokens=3)]
    runs = [serve.Run(summary=summarize(answers, wall, slo), server_cpu_s=1.0, client_cpu_s=0.1) for wall in (1.0, 2.0, 4.0)]
    rows = [serve.Row(**{"concurrency": None, "rate": None, **load}, runs=runs) for load in loads]
    return serve.ServeResults(model="m", rows=rows, peak_rss_bytes=123_000_000)


def test_a_spread() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert spread == Spread(median=2.5, low=1.0, high=10.0)
    assert spread.show() == "2.5 (1.0-10.0)"
    assert spread.show(1000, digits=0) == "2,500 (1,000-10,000)"
    assert Spread.of([2.0, 2.0]).show() == "2.0"


def test_the_terminal_shows_machine_tables_notes_and_warnings() -> None:
    console = Console(file=io.StringIO(), width=100)
    show(report("serve", {}), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "cores" in lines[0]
    assert [line.split() for line in lines[1:]] == [
        [],
        ["A", "table"],
        ["load", "tok/s"],
        ["1", "client", "12.5"],
        ["a", "note"],
        ["warning:", "odd"],
    ]


def test_json_holds_everything_and_no_place_on_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_json(report("latency", {"step_s": [0.5]}), file)
    content = json.loads(file.read_text())
    assert sorted(content) == ["benchmark", "provenance", "results", "settings", "warnings"]
    assert (content["benchmark"], content["results"], content["settings"]) == ("latency", {"step_s": [0.5]}, {"file": "b"})
    assert content["warnings"] == ["odd"]


def test_json_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_json(report("serve", {}), tmp_path / "missing" / "out.json")


def test_provenance_names_machine_versions_and_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    monkeypatch.setattr(sys, "argv", ["/some/bin/engine", "bench", "serve", "--artifacts", str(artifact), "--rate", "1/2"])
    facts: Provenance = provenance(artifact, packages=["torch", "no-such-package"])
    assert facts.command == "engine bench serve --artifacts artifact --rate 1/2"
    assert facts.cores == len(os.sched_getaffinity(0))
    assert list(facts.versions) == ["torch"]
    assert facts.artifact is not None
    assert (facts.artifact.model, facts.artifact.directory) == ("echo", "artifact")
    assert facts.artifact.digest == load_manifest(artifact).digest


@pytest.mark.parametrize(("typed", "command"), [("gpu.py", "benchmarks/gpu.py"), ("peers/__main__.py", "benchmarks/peers")])
def test_provenance_names_the_program_of_a_benchmark(typed: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / typed), "--json", "/results/file.json"])
    assert provenance().command == f"python {command} --json file.json"


def test_an_installed_package_has_no_commit(tmp_path: Path) -> None:
    assert _commit(tmp_path) is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = _commit(tmp_path)
    assert commit is not None
    assert len(commit) >= 7


def test_a_family_of_processes_is_measured_together() -> None:
    code = (
        "import subprocess, sys; big = bytearray(64 << 20); child = subprocess.Popen(['cat']); print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert family(process.pid) == [process.pid, child]
        together, alone = usage(process.pid), usage(child)
        assert together.peak_rss_bytes > alone.peak_rss_bytes + (64 << 20)
        assert together.cpu_s >= alone.cpu_s
        process.stdin.close()


def test_tables_of_a_load_test() -> None:
    rates, times = tables(serve_results([{"concurrency": 1}, {"concurrency": 8}, {"rate": 0.5}], Slo(ttft_s=0.2)))
    assert [row[0] for row in rates.rows] == [row[0] for row in times.rows] == ["1 client", "8 clients", "0.5 requests/s"]
    cells = dict(zip(rates.columns, rates.rows[0], strict=True))
    assert cells["done"] == "3/3"
    assert cells["output tok/s"] == "1.5 (0.8-3.0)"
    assert cells["goodput/s"] == "0.50 (0.25-1.00)"
    assert cells["cores used"] == "0.50 (0.25-1.00)"
    assert rates.notes == ["peak resident memory, server and worker: 123 MB"]
    cells = dict(zip(times.columns, times.rows[0], strict=True))
    assert (cells["TTFT p50"], cells["ITL p50"], cells["TPOT p99"], cells["E2E p90"]) == ("100", "150", "150", "500")


def test_without_limits_there_is_no_goodput() -> None:
    assert "goodput/s" not in tables(serve_results([{"concurrency": 1}]))[0].columns


def test_limits_in_words() -> None:
    assert describe_limits(LIMITS) == "limits, 2 threads: read 67.0 GB/s, int8 1,000 GMAC/s, bfloat16 500 GMAC/s, float32 250 GMAC/s"


def test_without_a_compiler_there_are_no_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    limits = measure_limits("cpu-x86-64-v3", 1)
    assert describe_limits(limits) == "limits: not measured, as g++ is not installed"
    assert share_of_read(1e9, limits) == "-"


def test_a_target_that_is_no_cpu_has_no_limits_of_that_kind() -> None:
    with pytest.raises(UsageError, match="sm90 is no CPU"):
        measure_limits("sm90", 1)


def test_the_last_cache(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "1024K", "32M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_cache_bytes(tmp_path) == 32 << 20
    assert last_cache_bytes(tmp_path / "none") == 0


@pytest.mark.parametrize("loads", [[{"concurrency": 1}, {"concurrency": 8}], [{"rate": 1.0}]])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_of_a_load_test(tmp_path: Path, loads: list[dict[str, Any]], suffix: str) -> None:
    file = tmp_path / f"plot{suffix}"
    plot.check(file)
    plot.plot(report("serve", serve_results(loads)), file)
    assert file.stat().st_size > 1000


def test_a_plot_of_latency(tmp_path: Path) -> None:
    decode = [
        latency.Decode(batch=batch, context=64, step_s=[0.01, 0.02], compute_s=[0.01, 0.01], weight_bytes=1, kv_bytes=1) for batch in (1, 8)
    ]
    results = latency.LatencyResults(limits=LIMITS, decode=decode, prefill=[latency.Prefill(tokens=128, first_token_s=[0.5])])
    plot.plot(report("latency", results), tmp_path / "plot.svg")
    assert "context 64" in (tmp_path / "plot.svg").read_text()


def test_what_cannot_be_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be drawn") as caught:
        plot.check(tmp_path / "plot.txt")
    assert caught.value.hint == "plots are .png, .svg, .pdf"
    with pytest.raises(UsageError, match="there is no directory"):
        plot.check(tmp_path / "missing" / "plot.png")
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs matplotlib") as caught:
        plot.check(tmp_path / "plot.png")
    assert caught.value.hint == "pip install 'engine-llm[bench]'"
