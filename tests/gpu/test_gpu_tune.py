"""`engine tune` on a GPU: candidates agree, and what was tuned still computes the model."""

from pathlib import Path

import numpy as np
import pytest
from gpu_artifacts import SHAPE, Built, build

from engine.artifacts import load_manifest
from engine.bench.options import TuneOptions
from engine.bench.tune import tune

LAYERS = 1


@pytest.fixture(scope="module")
def checkpoint(real_gpu: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from random_checkpoints import write_random_checkpoint

    shape = {**SHAPE, "num_hidden_layers": LAYERS}
    return write_random_checkpoint("llama", tmp_path_factory.mktemp("tune-model") / "model", dtype=torch.bfloat16, **shape)


@pytest.fixture(scope="module")
def tunable(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(checkpoint, tmp_path_factory.mktemp("tunable"), "--tunable")


def test_tuned_and_built(real_gpu: str, tunable: Built, tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    tuned = tune(TuneOptions(artifacts=tunable.artifact, output=file, runs=5))
    assert tuned.device == real_gpu
    assert {kind.split()[0] for kind in tuned.choices} == {"linear", "attention"}
    timings = [timing for timings in tuned.timings.values() for timing in timings]
    assert all(len(timing.seconds) > 1 for timing in timings)
    assert all(np.isfinite(seconds) and seconds > 0 for timing in timings for seconds in timing.seconds.values())
    assert [timing.refused for timing in timings if timing.refused] == []
    built = build(tunable.checkpoint, tmp_path, "--tuned", str(file))  # its golden probe is replayed below, by the executor
    assert load_manifest(built.artifact).tuned_on == real_gpu

    from engine.runtime.cuda.executor import CudaExecutor

    executor = CudaExecutor.load(built.artifact, load_manifest(built.artifact), kv_memory=64 << 20, max_num_seqs=8, max_batch_tokens=64)
    executor.close()
