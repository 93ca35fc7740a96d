"""`engine.runtime.logits`, which builds and `engine verify` call, on an artifact for a GPU."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import fake_cuda_installed
from fake_executor import logits_of
from safetensors.numpy import load_file
from toy_gpu_artifact import BLOCK_SIZE, VOCAB, ToyKernels, write_toy_artifact

from engine.runtime import logits

PROMPTS = [[4, 5, 6], [1], list(range(20))]


@pytest.mark.parametrize("last", [True, False])
def test_logits_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
    manifest = write_toy_artifact(tmp_path / "toy")
    monkeypatch.setattr(sys, "argv", ["logits", str(tmp_path / "toy"), str(tmp_path / "out"), *["--last"] * last])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(PROMPTS)))
    with fake_cuda_installed() as fake:
        ToyKernels(fake, tmp_path / "toy", manifest, num_blocks=20 // BLOCK_SIZE + 2)
        assert logits.main() == 0
        fake.library.fake_forget()  # the process would end here
    found = load_file(tmp_path / "out")
    for index, prompt in enumerate(PROMPTS):
        begin = len(prompt) if last else 1
        expected = np.stack([logits_of(prompt[:count], VOCAB) for count in range(begin, len(prompt) + 1)])
        assert np.array_equal(found[str(index)], expected)
