"""`engine plan`: figures from a manifest alone, and that servers which really start have the same."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_cuda import FakeCuda, fake_cuda_installed
from fake_executor import tiny_manifest
from serving_process import ServingProcess
from toy_gpu_artifact import ToyKernels, write_toy_artifact

from engine.artifacts import CacheGroup, Manifest, WeightInfo, load_manifest
from engine.artifacts.manifest import MANIFEST_NAME
from engine.cli import main
from engine.errors import UsageError
from engine.options.runtime import RuntimeOptions
from engine.runtime.capacity.capacity import Capacity, capacity, check
from engine.runtime.capacity.pools import pool_bytes, pool_sizes
from engine.runtime.cuda.executor import CudaExecutor

GIB = 1 << 30
_WORKER_WITH_FREE_MEMORY = """
import sys
import engine.runtime.capacity.kv_memory
engine.runtime.capacity.kv_memory.free_memory = lambda: {free}
from engine.runtime.process.worker import main
sys.exit(main())
"""


@pytest.fixture
def manifest_alone(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A directory with a manifest and nothing else."""
    directory = tmp_path / "alone"
    directory.mkdir()
    shutil.copy(tiny_artifact / MANIFEST_NAME, directory)
    return directory


def planned(artifact: Path, memory: int, contexts: list[int] | None = None, **limits: Any) -> Capacity:
    return capacity(load_manifest(artifact), memory, RuntimeOptions(**limits), contexts)


@pytest.mark.parametrize(
    ("free", "limits"),
    [
        (None, {}),
        (None, {"max_num_seqs": 3, "max_batch_tokens": 64}),
        (8_000_000, {}),
        (3_000_000, {"max_num_seqs": 8, "max_batch_tokens": 512}),
    ],
    ids=["all that it can use", "all that few sequences can use", "half of what is left", "half of what a larger step leaves"],
)
def test_a_server_that_starts_has_the_planned_blocks(tiny_artifact: Path, free: int | None, limits: dict[str, Any]) -> None:
    """free: what the worker finds free; by default what this machine has, far more than so small a model can use."""
    script = _WORKER_WITH_FREE_MEMORY.format(free=free)
    command = None if free is None else [sys.executable, "-P", "-c", script]
    with ServingProcess(tiny_artifact, worker_command=command, **limits) as server:
        server.ready()
        metrics = dict(line.rsplit(" ", 1) for line in server.http.get("/metrics").text.splitlines() if not line.startswith("#"))
    found = planned(tiny_artifact, free or 4 * GIB, **limits)
    assert found.blocks == float(metrics["engine_kv_cache_blocks"]) > 0
    longest = load_manifest(tiny_artifact).model.max_context
    most = found.max_num_seqs * longest // found.groups[0].tokens_per_block
    assert (found.blocks == most) == (free is None)


def test_figures_agree_with_each_other(tiny_artifact: Path) -> None:
    manifest = load_manifest(tiny_artifact)
    found = planned(tiny_artifact, 8_000_000, [1, 33, 256])
    assert found.weight_bytes == sum(info.bytes for name, info in manifest.files.items() if name.startswith("weights/"))
    assert found.code_bytes == sum((tiny_artifact / name).stat().st_size for name in manifest.code_files)
    assert found.weight_bytes + found.step_bytes + found.kv_bytes <= found.memory
    assert [context.blocks for context in found.contexts] == [{"full": 1}, {"full": 2}, {"full": 8}]
    assert [context.sequences for context in found.contexts] == [found.blocks, found.blocks // 2, found.blocks // 8]
    assert [context.running for context in found.contexts] == [min(64, context.sequences) for context in found.contexts]
    assert found.contexts[0].running < found.contexts[0].sequences


@pytest.mark.parametrize("tokens", [1, 32, 33, 100, 256])
def test_the_least_memory_is_the_least(tiny_artifact: Path, tokens: int) -> None:
    least = planned(tiny_artifact, 4 * GIB, [tokens]).contexts[0].least_memory
    assert planned(tiny_artifact, least, [tokens]).contexts[0].sequences == 1
    assert planned(tiny_artifact, least - 4, [tokens]).contexts[0].sequences == 0


def test_from_the_manifest_alone_and_without_anything_heavy(manifest_alone: Path) -> None:
    code = "import sys; from engine.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-P", "-c", code, "plan", str(manifest_alone), "--memory", "1GiB", "--context", "64", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["memory"] == GIB
    assert [context["tokens"] for context in figures["contexts"]] == [64]
    imported = {name.partition(".")[0] for name in done.stderr.split()}
    assert imported & {"torch", "numpy", "rich", "triton", "transformers"} == set()


def test_a_table_for_people(manifest_alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["plan", str(manifest_alone), "--memory", "8MB", "--max-num-seqs", "16"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    found = planned(manifest_alone, 8_000_000, max_num_seqs=16)
    assert lines[0] == f"tiny-llama ({found.target}) in 7.6 MiB"
    assert any(line.startswith("KV cache full ") and f"{found.blocks:,} blocks of 32 tokens in float32" in line for line in lines)
    assert [line.split()[0] for line in lines[-3:]] == ["16", "64", "256"]
    assert [line.split()[2] for line in lines[-3:]] == [str(context.sequences) for context in found.contexts]


def test_when_nothing_fits_the_least_that_does_is_named(manifest_alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(manifest_alone), "--memory", "100kB", "--json"]) == UsageError.exit_code
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert figures["blocks"] == 0
    assert f"100,000 bytes are too little for tiny-llama: it takes {figures['least_memory']:,} at least" in captured.err
    assert "hint: lower --max-batch-tokens" in captured.err


def test_when_not_one_sequence_fits(manifest_alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = planned(manifest_alone, GIB).least_memory
    assert main(["plan", str(manifest_alone), "--memory", str(memory), "--context", "256", "--json"]) == UsageError.exit_code
    captured = capsys.readouterr()
    least = json.loads(captured.out)["contexts"][0]["least_memory"]
    assert f"not one sequence of 256 tokens fits into {memory:,} bytes: {least:,} are needed" in captured.err


def test_lengths_that_nobody_asked_for_may_not_fit(manifest_alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = planned(manifest_alone, GIB).least_memory
    assert main(["plan", str(manifest_alone), "--memory", str(memory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["contexts"][-1]["sequences"] == 0


@pytest.mark.parametrize(
    ("format", "hint"), [("f32", "--quantize"), ("bf16", "--quantize"), ("q8_0", "a smaller model"), ("q4_1", "a smaller model")]
)
def test_weights_that_are_quantized_are_not_to_be_quantized(format: str, hint: str) -> None:
    manifest = tiny_manifest()
    weight = WeightInfo(file="weights/00000.safetensors", dtype="uint8", shape=[1], format=format, sources=["w"], recipe=[])
    manifest = msgspec.structs.replace(manifest, weights={"w": weight})
    with pytest.raises(UsageError, match="too little") as raised:
        check(capacity(manifest, 1, RuntimeOptions()), manifest, [])
    assert hint in str(raised.value.hint)


def gemma(layers: int, *, window: int = 1024, max_context: int = 32768) -> Manifest:
    """The shape of a Gemma 3: of six layers one sees all tokens, the others a window."""
    whole = [layer for layer in range(layers) if layer % 6 == 5]
    groups = {
        "full": (0, whole or [layers]),
        "window": (window, [layer for layer in range(layers) if layer not in whole]),
    }
    caches = [
        CacheGroup(
            name=name,
            kind="window" if size else "full",
            window=size,
            layers=members,
            num_kv_heads=4,
            head_dim=256,
            block_size=32,
            dtype="bfloat16",
        )
        for name, (size, members) in groups.items()
    ]
    base = tiny_manifest(max_context=max_context, block_size=32)
    return msgspec.structs.replace(base, caches=caches, model=msgspec.structs.replace(base.model, num_layers=layers))


@pytest.mark.parametrize("layers", [26, 62])
def test_windows_take_what_they_show(layers: int) -> None:
    """A sequence of 32k tokens takes about a fifth of what it would if every layer kept all of them."""
    manifest = gemma(layers)
    token = 2 * 4 * 256 * 2  # bytes of a layer's key and value
    whole, windowed = (len(group.layers) for group in manifest.caches)
    blocks = 1024 // 32 + 2
    found = capacity(manifest, 64 * GIB, RuntimeOptions(max_num_seqs=16), [32768])
    (context,) = found.contexts
    assert context.blocks == {"full": 32768 // 32, "window": blocks}
    each = sum(context.blocks[group.name] * group.bytes_per_block for group in manifest.caches)
    assert each == token * (whole * 32768 + windowed * blocks * 32)
    assert each / (token * layers * 32768) < 0.21
    assert context.sequences == 16, "pools for as many as run together, and both are used up by them"
    steps = 2 * found.max_batch_tokens // 32
    assert [group.blocks for group in found.groups] == [16 * 1024, 16 * blocks + steps]


@pytest.mark.parametrize("memory", [10**7, 10**8, 10**9, 10**10, 10**11])
def test_pools_use_up_the_memory_together(memory: int) -> None:
    groups = gemma(26).caches
    sizes = pool_sizes(groups, memory, max_context=32768, max_batch_tokens=512)
    assert memory - sum(group.bytes_per_block for group in groups) < pool_bytes(groups, sizes) <= memory
    sequences = sizes["full"] / 1024
    assert sizes["window"] == min(sizes["full"], -(-sizes["full"] * 34 // 1024) + 32)
    assert sizes["window"] >= 34 * sequences or sizes["window"] == sizes["full"]


def test_a_window_alone_takes_all_of_the_memory() -> None:
    groups = [group for group in gemma(6).caches if group.window]
    sizes = pool_sizes(groups, 10**10, max_context=32768, max_batch_tokens=512)
    assert sizes["window"] == 10**10 // groups[0].bytes_per_block


def test_a_context_that_the_artifact_does_not_have(manifest_alone: Path) -> None:
    with pytest.raises(UsageError, match="longer than the artifact's 256"):
        planned(manifest_alone, GIB, [257])


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


@pytest.mark.parametrize("limits", [{"max_num_seqs": 1, "max_batch_tokens": 16}, {"max_num_seqs": 8, "max_batch_tokens": 64}])
def test_on_a_gpu_all_but_the_inputs_of_a_step_is_counted(fake: FakeCuda, tmp_path: Path, limits: dict[str, Any]) -> None:
    write_toy_artifact(tmp_path / "artifact")
    manifest = load_manifest(tmp_path / "artifact")
    ToyKernels(fake, tmp_path / "artifact", manifest, num_blocks=48)
    memory = 10_000_000
    fake.library.fake_set_total_memory(memory)
    executor = CudaExecutor.load(tmp_path / "artifact", manifest, **limits)
    executor.close()
    assert executor.pools["full"] <= planned(tmp_path / "artifact", memory, **limits).blocks <= 1.01 * executor.pools["full"]


def test_on_a_gpu_a_step_that_has_no_graph_is_refused(tmp_path: Path) -> None:
    write_toy_artifact(tmp_path / "artifact")
    with pytest.raises(UsageError, match="no graph for a step of 65 tokens"):
        planned(tmp_path / "artifact", GIB, max_num_seqs=8, max_batch_tokens=65)


def test_on_a_gpu_the_least_memory_is_the_least(tmp_path: Path) -> None:
    write_toy_artifact(tmp_path / "artifact")
    limits: dict[str, Any] = {"max_num_seqs": 8, "max_batch_tokens": 64}
    least = planned(tmp_path / "artifact", GIB, **limits).least_memory
    assert planned(tmp_path / "artifact", least, **limits).blocks > 0
    assert planned(tmp_path / "artifact", least - 4, **limits).blocks == 0
