"""The package as it is shipped builds and runs a model, away from the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from engine.artifacts import load_manifest


def test_a_wheel_builds_and_generates(wheel: Path, tiny_checkpoint: Path, tiny_artifact: Path, store: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}

    def engine(*arguments: object) -> str:
        command = [sys.executable, "-m", "engine", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    engine("build", tiny_checkpoint, "-o", tmp_path / "artifact", "--store", store)
    # The C++ sources travelled along: the same library, found under the same key.
    assert load_manifest(tmp_path / "artifact").kernel_library == load_manifest(tiny_artifact).kernel_library
    sampling = ["--temperature", 0, "--max-tokens", 5, "--kv-memory", "16MB", "--json"]
    answer = json.loads(engine("generate", "--artifacts", tmp_path / "artifact", *sampling, "a b c"))
    assert answer["prompt"] == "a b c"
    assert answer["completion_tokens"] == 5 or answer["finish_reason"] == "stop"
