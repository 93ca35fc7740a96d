"""Artifacts for the tests on a GPU: what is built, how, and what its steps compute."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.runtime.batch import StepInputs
from engine.runtime.cuda.executor import CudaExecutor

INTERPRET = "TRITON_INTERPRET"
# Several tiles of every kernel, and sizes that are no multiples of them; for the interpreter, next to nothing.
SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 4,
    "vocab_size": 30011,
    "max_position_embeddings": 4096,
}
SMALL_SHAPE: dict[str, Any] = {
    "hidden_size": 72,
    "intermediate_size": 104,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}
KV_MEMORY = 64 << 20


class Built(NamedTuple):
    """dump: the build's --debug-dump, from which kernels can be interpreted."""

    checkpoint: Path
    artifact: Path
    dump: Path


def build(checkpoint: Path, directory: Path, *flags: str) -> Built:
    """An artifact for sm90. In a process of its own: a build takes the GPU's place in torch, and this process wants the GPU."""
    command = [sys.executable, "-P", "-m", "engine", "build", str(checkpoint), "--target", "sm90", "-o", str(directory / "artifact")]
    command += ["--store", str(directory / "store"), "--debug-dump", str(directory / "dump"), *flags]
    environment = {name: value for name, value in os.environ.items() if name != INTERPRET}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory)
    assert done.returncode == 0, done.stderr[-4000:]
    return Built(checkpoint, directory / "artifact", directory / "dump")


def rows(executor: CudaExecutor, inputs: StepInputs) -> NDArray[np.float32]:
    """The logits [S, V] of a step; what the GPU says is the largest must be."""
    computed = executor.step(inputs)
    found = np.stack([computed[row] for row in range(inputs.rows)])
    assert executor.choose(computed, range(len(found))) == found.argmax(axis=1).tolist()
    return found
