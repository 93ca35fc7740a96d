"""What `engine bench` and `engine inspect` make of an artifact for a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cuda import FakeCuda, fake_cuda_installed
from toy_gpu_artifact import ToyKernels, write_toy_artifact

from engine.artifacts import Manifest
from engine.bench.limits import GpuLimits, describe_limits, measure_gpu_limits
from engine.bench.provenance import provenance
from engine.cli import main


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda_installed() as fake:
        yield fake


@pytest.fixture
def artifact(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path / "toy", write_toy_artifact(tmp_path / "toy")


def test_inspect_lists_graphs(artifact: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(artifact[0])]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "CUDA graphs of 4 kernels" in lines
    assert "decode 8 8 4 1.3 KiB" in lines
    assert "mixed 64 8 4 1.3 KiB" in lines


def test_verify_reads_every_file(artifact: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(artifact[0])]) == 0
    assert "13 files" in capsys.readouterr().out


def test_bandwidth_is_that_of_copies(fake: FakeCuda) -> None:
    limits = measure_gpu_limits()
    assert limits == GpuLimits(gpu="Stand-in 0", read_bytes=(512 << 20) / 1e-3)  # the stand-in's every copy takes a millisecond
    assert describe_limits(limits) == "limits, Stand-in 0: copies read and write 536.9 GB/s"


def test_provenance_names_the_gpu(fake: FakeCuda, artifact: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance(artifact[0]).gpu == "Stand-in 0, driver for CUDA 12.8"
    assert provenance().gpu is None
    monkeypatch.setenv("ENGINE_LIBCUDA", "libthereisnone.so")
    assert provenance(artifact[0]).gpu is None


def test_latency(fake: FakeCuda, artifact: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    directory, manifest = artifact
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "text.json").write_text('{"eos_token_ids": []}')
    ToyKernels(fake, directory, manifest, num_blocks=60)
    options = ["--batch", "2", "--context", "8", "--prefill", "8", "--steps", "3", "--runs", "2", "--max-batch-tokens", "32"]
    code = main(["bench", "latency", "--artifacts", str(directory), *options, "--kv-memory", str(60 * manifest.caches[0].bytes_per_block)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "Stand-in 0, driver for CUDA 12.8" in captured.out
    assert "copies read and write 536.9 GB/s" in captured.out
    fake.library.fake_forget()


def test_kernels_are_for_cpus(artifact: tuple[Path, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--artifacts", str(artifact[0])]) == 2
    assert "this artifact is for sm90, and the benchmark measures kernels for CPUs" in capsys.readouterr().err
