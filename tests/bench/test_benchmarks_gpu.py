"""benchmarks/gpu.py over the stand-in for the driver: what it builds, loads, launches and reports."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkout import ROOT
from fake_cuda import FakeCuda, fake_cuda_installed, memory

from engine.artifacts import load_manifest
from engine.runtime.cuda.executor import CudaExecutor
from engine.runtime.cuda.random_numbers import random_block


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The benchmark, which is a program and no part of the package."""
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "benchmarks_gpu", module)  # dataclasses look there
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def work(gpu: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of the smallest shape: as it is, with quantized weights, and without a rewrite."""
    work: Path = tmp_path_factory.mktemp("gpu-benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "optional_passes", lambda: ["merge_sibling_linears"])
        assert gpu.main(["--work", str(work), "--models", "tiny", "--quantize", "none,int4", "--passes", "--build-only"]) == 0
    return work


@pytest.mark.slow
def test_measured_from_end_to_end(
    gpu: ModuleType, work: Path, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["tiny-none", "tiny-int4", "tiny-without-merge_sibling_linears"]
    for name in names:
        fake.declare(work / name, load_manifest(work / name))
    monkeypatch.setattr(gpu, "optional_passes", lambda: ["merge_sibling_linears"])
    monkeypatch.setattr(gpu, "matrix_flops", lambda: 790e12)
    sizes = ["--batch", "1,3", "--context", "40", "--prefill", "50,100", "--steps", "7"]
    file = work / "gpu.json"
    options = ["--work", str(work), "--models", "tiny", "--quantize", "none,int4", "--passes", *sizes, "--json", str(file)]
    before = fake.launches
    assert gpu.main(options) == 0
    results = json.loads(file.read_text())["results"]
    assert [(one["model"], one["quantize"], one["without"]) for one in results["measured"]] == [
        ("tiny", "none", None),
        ("tiny", "int4", None),
        ("tiny", "none", "merge_sibling_linears"),
    ]
    for one in results["measured"]:
        assert [len(row["seconds"]) for row in one["decode"]] == [7, 7]
        assert [len(row["seconds"]) for row in one["prefill"]] == [5, 5]
        assert all(seconds == pytest.approx(1e-3) for row in one["decode"] for seconds in row["seconds"])  # the stand-in's clock
        assert "probe" in one["phases"]
        assert [graph["name"] for graph in one["graphs"]].count("decode-4") == 1
    whole, packed, parted = results["measured"]
    assert packed["decode"][0]["weight_bytes"] < whole["decode"][0]["weight_bytes"] / 2
    assert parted["graphs"][0]["nodes"] > whole["graphs"][0]["nodes"]
    # keys and values of 3 x 40 tokens, 2 layers of 2 heads of 64 numbers
    assert whole["decode"][1]["kv_bytes"] == 3 * 40 * 2 * 2 * 2 * 64 * 2
    layers = 256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 512
    assert whole["prefill"][0]["macs"] == 50 * 2 * layers
    launched = sum(7 + 3 for _ in range(2)) + sum(5 + 3 for _ in range(2))
    assert fake.launches - before == len(names) * launched
    shown = " ".join(capsys.readouterr().out.split())
    assert "Time without a rewrite / with all" in shown
    assert "merge_sibling_linears 1.000 1.000 1.000 1.000" in shown


@pytest.mark.slow
def test_weights_and_cache_are_random_numbers(work: Path, fake: FakeCuda) -> None:
    manifest = load_manifest(work / "tiny-int4")
    fake.declare(work / "tiny-int4", manifest)
    executor = CudaExecutor.load(work / "tiny-int4", manifest, kv_memory=1 << 20, random_numbers=True)
    _, regions = executor.graphs.resolve(0)
    for name, region in regions.items():
        kind, _, weight = name.partition(":")
        if kind == "cache" or (kind == "weight" and manifest.weights[weight].dtype == "bfloat16"):
            numbers = (memory(region.address, "u2", region.nbytes // 2).astype(np.uint32) << 16).view(np.float32)
            assert 0.0078 <= np.abs(numbers).min() <= np.abs(numbers).max() < 0.032
            assert 0.4 < (numbers > 0).mean() < 0.6
    executor.close()


@pytest.mark.parametrize("view", ["f2", "f4"])
def test_random_bytes_are_sane_as_scales_of_any_type(view: str) -> None:
    numbers = random_block("uint8", 4096).view(view).astype(np.float64)
    assert np.isfinite(numbers).all()
    assert 5e-4 < np.abs(numbers).min() <= np.abs(numbers).max() < 2


def test_what_the_command_is_told_wrongly(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--work", str(tmp_path), "--models", "70b"])
    assert "there is no shape 70b; there are 1b, 8b, tiny" in capsys.readouterr().err


def test_a_build_that_fails_is_told(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--work", str(tmp_path), "--models", "tiny", "--quantize", "int3", "--build-only"]) == 1
    assert "tiny-int3 was not built" in capsys.readouterr().err
