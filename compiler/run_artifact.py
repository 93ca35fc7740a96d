"""Runs an artifact in a process of its own and brings its logits back."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import BuildError


def artifact_logits(
    directory: Path, prompts: list[list[int]], *, last_only: bool, pair_starts: Sequence[int] | None = None
) -> list[torch.Tensor]:
    """Logits of every prompt, float32: [len(prompt), V], or [1, V] after the last token only, or what pooling gives for a whole text.

    pair_starts: where the second text of each begins, with `last_only`; 0 where there is none.
    Raises BuildError with what the process said if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="engine-logits-") as scratch:
        output = Path(scratch) / "logits.safetensors"
        command = [sys.executable, "-P", "-m", "engine.runtime.logits", str(directory), str(output), *(["--last"] if last_only else [])]
        command += ["--pair-starts", *map(str, pair_starts)] if pair_starts is not None else []
        done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, env=os.environ | {"PYTHONSAFEPATH": "1"})
        if done.returncode != 0:
            raise BuildError(f"the artifact does not run (exit code {done.returncode}):\n{done.stderr.strip()[-2000:]}")
        logits = load_file(output)
    return [logits[str(index)] for index in range(len(prompts))]
