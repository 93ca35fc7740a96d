"""`engine bench` from the command line: its flags, its mistakes, and each benchmark once, end to end."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from artifact_stand_in import MODEL, write_artifact
from misbehaving_server import HEADERS, LAST_CHUNK, event, misbehaving
from patience import PATIENCE
from serving_process import ServingProcess

from engine.bench.benchmarks import BENCHMARKS
from engine.bench.serve import only_model
from engine.cli import main, parse
from engine.errors import UsageError
from engine.kernels.linear.blocks import FORMATS
from engine.options.values import as_typed

HEAVY = ("torch", "numpy", "rich", "tokenizers", "uvloop", "httptools", "matplotlib")


def imported_by(code: str) -> set[str]:
    """Names of all top-level modules that a fresh interpreter has after running `code`."""
    report = "\nimport sys; print('\\n'.join(sys.modules), file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-P", "-c", code + report], cwd="/", capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split("\n")}


# --- flags ----------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_benchmark_has_a_module(benchmark: str) -> None:
    module = importlib.import_module(f"engine.bench.{benchmark}")
    assert get_type_hints(module.measure)["options"] is BENCHMARKS[benchmark].options


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_option_is_a_flag_and_its_default_reads_back(benchmark: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = BENCHMARKS[benchmark].options
    for field in dataclasses.fields(options):
        if "type" in field.metadata and field.default not in (None, dataclasses.MISSING):
            typed = as_typed(field.default, field.metadata["type"])
            assert field.metadata["type"](typed) == field.default
    with pytest.raises(SystemExit):
        main(["bench", benchmark, "--help"])
    text = capsys.readouterr().out
    missing = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)} - {
        word.strip("[]") for word in text.replace("\n", " ").split()
    }
    assert missing <= {"--serve-arguments", "--api-key"}


def test_flags_become_options() -> None:
    line = (
        "bench serve --artifacts a --concurrency 1,8 --prompt-tokens 32:256 --output-tokens 64 --rate 0.5,2 --slo-ttft 250 -- --threads 2"
    )
    command, given = parse(line.split())
    assert command == "bench"
    assert given == {
        "benchmark": "serve",
        "artifacts": Path("a"),
        "concurrency": (1, 8),
        "prompt_tokens": (32, 256),
        "output_tokens": (64, 64),
        "rate": (0.5, 2.0),
        "slo_ttft": 250.0,
        "serve_arguments": ["--threads", "2"],
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: BENCHMARK"),
        ("latency", "the following arguments are required: --artifacts"),
        ("serve", "give either --url or --artifacts"),
        ("serve --url http://a --artifacts b", "give either --url or --artifacts"),
        ("serve --url http://a", "--url needs --tokenizer"),
        ("serve --url http://a --tokenizer b -- --threads 1", "arguments after -- are for the server that --artifacts starts"),
        ("serve --artifacts x --concurrency 1,,2", "'' is not a whole number above 0"),
        ("serve --artifacts x --concurrency 0", "'0' is not a whole number above 0"),
        ("serve --artifacts x --prompt-tokens 9:3", "'9:3' ends before it begins"),
        ("serve --artifacts x --rate 1,nan", "'nan' is not a number above 0"),
        ("serve --artifacts x --warmup -1", "warmup"),
        ("serve --artifacts x --plot x.txt", "x.txt cannot be drawn"),
        ("kernels --artifacts x --shape 64", "'' is not a whole number above 0"),
        ("latency --artifacts /no/such/place", "is not an artifact"),
    ],
)
def test_mistakes(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *line.split()]) in (2, 6)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_help_waits_for_nothing(benchmark: str) -> None:
    code = "import contextlib, io\nfrom engine.cli import main\n"
    code += f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['bench', {benchmark!r}, '--help'])"
    assert imported_by(code).isdisjoint(HEAVY)


def test_serving_does_not_load_benchmarks() -> None:
    code = "import sys; from engine.cli import parse; parse(['serve', '--artifacts', 'a']); print('engine.bench' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_clients_half_needs_no_torch() -> None:
    names = ("client", "workload", "metrics", "report", "provenance", "startup", "serve", "throughput", "processes")
    assert imported_by("\n".join(f"import engine.bench.{name}" for name in names)).isdisjoint({"torch", "transformers", "matplotlib"})


# --- the model's name -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with ServingProcess(write_artifact(tmp_path_factory.mktemp("server") / "artifact"), api_key="secret") as server:
        yield server.ready()


def test_the_only_model_of_a_server(server: ServingProcess) -> None:
    assert only_model(server.url, "secret") == MODEL
    with pytest.raises(UsageError, match=r"names no models \(HTTP 401\)") as caught:
        only_model(server.url)
    assert caught.value.hint == "choose one with --model NAME"


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="does not answer as OpenAI's API does"):
        only_model("http://127.0.0.1:1")


# --- end to end -----------------------------------------------------------------------------


def bench(benchmark: str, *flags: str, folder: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs a benchmark as users do; what it wrote to --json."""
    file = folder / f"{benchmark}.json"
    command = [sys.executable, "-P", "-m", "engine", "bench", benchmark, "--json", str(file), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, env={**os.environ, **(environment or {})})
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(file.read_text())
    assert content["benchmark"] == benchmark
    assert str(folder) not in file.read_text()
    assert done.stdout
    return content


SMALL = ("--requests", "4", "--prompt-tokens", "4:12", "--output-tokens", "5", "--runs", "1")
NO_MEMORY = ("--kv-memory", "4MB", "--threads", "1")


def test_a_load_test_of_a_running_server(server: ServingProcess, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    flags = ("--url", server.url, "--tokenizer", str(artifact), "--concurrency", "1,2", "--slo-e2e", "60000", *SMALL)
    content = bench("serve", *flags, "--plot", str(tmp_path / "plot.svg"), folder=tmp_path, environment={"ENGINE_API_KEY": "secret"})
    assert "secret" not in json.dumps(content)
    assert (content["results"]["model"], content["results"]["peak_rss_bytes"]) == (MODEL, None)
    assert [row["concurrency"] for row in content["results"]["rows"]] == [1, 2]
    for row in content["results"]["rows"]:
        (run,) = row["runs"]
        assert (run["summary"]["completed"], run["summary"]["output_tokens"], run["server_cpu_s"]) == (4, 20, None)
        assert run["summary"]["goodput"] == pytest.approx(run["summary"]["requests_per_s"])
    # The scripted worker says that it had two tokens of every prompt.
    assert content["warnings"] == ["the server had 16 prompt tokens in its prefix cache: another --seed asks what it has not seen"]
    assert (tmp_path / "plot.svg").exists()


def test_a_load_test_that_fails_altogether(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A server whose streams break off: the benchmark says so and exits with a worker's code."""
    import asyncio
    import threading

    artifact = write_artifact(tmp_path / "artifact")
    started: list[str] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with misbehaving([HEADERS, event(b'{"choices": [{"text": "x"}]}'), LAST_CHUNK]) as (url, _):
            started.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        line = ["bench", "serve", "--url", started[0], "--model", "m", "--tokenizer", str(artifact), *SMALL]
        assert main(line) == 8
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
    assert "every request failed; the first one: the stream ended before the answer did" in capsys.readouterr().err


def test_a_load_test_of_an_artifact(tiny_artifact: Path, tmp_path: Path) -> None:
    content = bench("serve", "--artifacts", str(tiny_artifact), "--rate", "100", *SMALL, "--", *NO_MEMORY, folder=tmp_path)
    (row,) = content["results"]["rows"]
    (run,) = row["runs"]
    assert (row["rate"], row["concurrency"]) == (100.0, None)
    assert (run["summary"]["completed"], run["summary"]["output_tokens"], run["summary"]["cached_tokens"]) == (4, 20, 0)
    assert content["results"]["peak_rss_bytes"] > 50_000_000
    assert run["server_cpu_s"] is not None
    assert content["settings"]["serve_arguments"] == list(NO_MEMORY)
    assert content["warnings"] == []


def test_start_up(tiny_artifact: Path, tmp_path: Path) -> None:
    content = bench("startup", "--artifacts", str(tiny_artifact), "--runs", "1", "--", *NO_MEMORY, folder=tmp_path)
    (start,) = content["results"]["engine_serve"]
    assert 0 < start["listening"] <= start["first_token"]
    assert start["phases"]["probe"] > 0
    assert len(content["results"]["import_torch"]) == 1
    assert content["provenance"]["artifact"]["model"] == "tiny-llama"


def test_a_server_that_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    assert main(["bench", "serve", "--artifacts", str(artifact), *SMALL]) == 8
    error = capsys.readouterr().err
    assert "engine serve did not" in error
    assert "it said:" in error


def test_throughput(tiny_artifact: Path, tmp_path: Path) -> None:
    content = bench("throughput", "--artifacts", str(tiny_artifact), *SMALL, *NO_MEMORY, folder=tmp_path)
    (run,) = content["results"]["runs"]
    assert (run["requests"], run["output_tokens"]) == (4, 20)
    assert 4 * 4 <= run["prompt_tokens"] <= 4 * 12


def test_latency(tiny_artifact: Path, tmp_path: Path) -> None:
    sizes = ("--batch", "1,2", "--context", "16,40", "--prefill", "20", "--steps", "3", "--runs", "2")
    content = bench("latency", "--artifacts", str(tiny_artifact), *sizes, *NO_MEMORY, folder=tmp_path)
    decode, (prefill,) = content["results"]["decode"], content["results"]["prefill"]
    assert [(row["batch"], row["context"]) for row in decode] == [(1, 16), (2, 16), (1, 40), (2, 40)]
    for row in decode:
        assert len(row["step_s"]) == len(row["compute_s"]) == 3
        assert all(0 < computing <= step for step, computing in zip(row["step_s"], row["compute_s"], strict=True))
    assert decode[3]["kv_bytes"] == 5 * decode[0]["kv_bytes"]
    assert (prefill["tokens"], len(prefill["first_token_s"])) == (20, 2)
    assert content["results"]["limits"]["read_bytes"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--context", "1000"), "do not fit the model's context of 256"),
        (("--prefill", "300"), "301 tokens do not fit the model's context of 256"),
        (("--batch", "8", "--context", "100", "--kv-memory", "100KB"), "the KV cache does not hold 8 sequences"),
    ],
)
def test_latency_of_what_does_not_fit(tiny_artifact: Path, flags: tuple[str, ...], message: str) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "engine",
        "bench",
        "latency",
        "--artifacts",
        str(tiny_artifact),
        "--prefill",
        "8",
        "--steps",
        "2",
    ]
    done = subprocess.run([*command, "--context", "8", "--batch", "1", *flags], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 2
    assert message in done.stderr


def test_kernels(tiny_artifact: Path, tmp_path: Path) -> None:
    flags = ("--rows", "3", "--shape", "64x96", "--seconds", "0.001", "--threads", "1")
    content = bench("kernels", "--artifacts", str(tiny_artifact), *flags, folder=tmp_path)
    kernels, limits = content["results"]["kernels"], content["results"]["limits"]
    assert {kernel["kernel"] for kernel in kernels if kernel["shape"] == "64x96"} == {
        *(f"linear {name}" for name, spec in FORMATS.items() if 96 % spec.block == 0),
        "linear f32",
        "linear bf16",
    }
    (three,) = (kernel for kernel in kernels if (kernel["kernel"], kernel["shape"], kernel["rows"]) == ("linear f32", "64x96", 3))
    assert three["macs"] == 3 * 64 * 96
    assert three["bytes"] == 4 * (64 * 96 + 3 * 96 + 3 * 64)
    assert [kernel["kernel"] for kernel in kernels if kernel["kernel"].startswith("attention")] == 3 * ["attention float32"]
    assert all(kernel["seconds"]["low"] > 0 for kernel in kernels)
    assert min(limits["read_bytes"], limits["int8_macs"], limits["bfloat16_macs"], limits["float32_macs"]) > 0
