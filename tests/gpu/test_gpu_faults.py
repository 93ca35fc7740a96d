"""What must not be served, and what must not stay behind."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_artifacts import KV_MEMORY, Built, rows
from gpu_steps import Chunk, step_inputs

from engine.artifacts import load_manifest
from engine.errors import ArtifactError, UsageError
from engine.runtime.cuda.device import Device
from engine.runtime.cuda.driver import Driver
from engine.runtime.cuda.executor import CudaExecutor

NOISE = 8 << 20
"""Bytes of the GPU's memory that the driver may keep for itself; a leaked cache, workspace or weight file is more."""


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Built:
    shutil.copytree(built.artifact, tmp_path / "artifact")
    return built._replace(artifact=tmp_path / "artifact")


def test_damaged_weights_fail_the_golden_probe(copy: Built, load: Callable[..., CudaExecutor]) -> None:
    weights = copy.artifact / "weights" / "00000.safetensors"
    data = bytearray(weights.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = bytes(len(data) // 8)
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="golden probe failed"):
        load(copy)


def test_damaged_code_is_not_run(copy: Built, load: Callable[..., CudaExecutor]) -> None:
    cubin = copy.artifact / load_manifest(copy.artifact).kernels[0].file
    data = bytearray(cubin.read_bytes())
    data[-1] ^= 1
    cubin.write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged"):
        load(copy)


def test_limits_that_no_graph_has(built: Built, load: Callable[..., CudaExecutor]) -> None:
    with pytest.raises(UsageError, match="no graph for a step of 1,000,000 tokens"):
        load(built, max_batch_tokens=1_000_000)


def test_nothing_leaks(built: Built, on_device: Callable[[Built], None]) -> None:
    """Memory of the GPU and open files, over loads that work and one that fails. The first one fills the driver's own pools."""
    on_device(built)
    manifest = load_manifest(built.artifact)

    def load_and_run() -> None:
        executor = CudaExecutor.load(built.artifact, manifest, kv_memory=KV_MEMORY, max_num_seqs=8, max_batch_tokens=2048)
        rows(executor, step_inputs([Chunk([5, 6, 7], 0, [1])]))
        executor.close()

    def fail_to_load() -> None:
        with pytest.raises(UsageError):
            CudaExecutor.load(built.artifact, manifest, kv_memory=1, max_num_seqs=8, max_batch_tokens=2048)

    with Device(Driver()) as device:

        def held() -> tuple[int, int]:
            device.make_current()
            free, total = device.memory()
            return total - free, len(os.listdir("/proc/self/fd"))

        load_and_run()
        memory, files = held()
        for use in (load_and_run, fail_to_load, load_and_run, load_and_run):
            use()
        assert held()[0] <= memory + NOISE
        assert held()[1] <= files
