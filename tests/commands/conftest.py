"""An artifact whose worker says its prompt back."""

import functools
import sys
from pathlib import Path

import pytest
from artifact_stand_in import write_artifact
from checkout import ROOT

from engine.commands import terminal
from engine.server.llm import LLM

WORKER = ROOT / "tests" / "support" / "scripted_worker.py"


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    worker = (sys.executable, "-P", str(WORKER))
    monkeypatch.setattr(terminal, "LLM", functools.partial(LLM, worker_command=worker))
    return str(write_artifact(tmp_path / "artifact"))
