"""An artifact is all that serving needs: no compiler, no home, no path that was there when it was built, and no right to write."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_process import ServingProcess

from engine.artifacts import load_manifest

NOBODY = 65534


@pytest.fixture
def moved(tiny_artifact: Path) -> Iterator[Path]:
    """A copy in a place that everybody may read."""
    with tempfile.TemporaryDirectory(prefix="moved artifact ") as place:
        Path(place).chmod(0o755)
        yield Path(shutil.copytree(tiny_artifact, Path(place) / "of another user" / "artifact"))


def environment() -> dict[str, str]:
    """Nothing but where tests find the package."""
    return {"PATH": "/nowhere"} | {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH") if name in os.environ}


def serves(artifact: Path, launcher: tuple[str, ...], uid: int) -> None:
    before = {path: path.stat().st_mtime_ns for path in artifact.rglob("*")}
    options: dict[str, Any] = {"worker_command": None, "kv_memory": 16 << 20}
    with ServingProcess(artifact, launcher=launcher, environment=environment(), **options) as server:
        server.ready()
        name = load_manifest(artifact).model.name
        answer = server.openai.completions.create(
            model=name, prompt=[1, 2, 3], max_tokens=4, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        (worker,) = [pid for pid in pids if b"engine.runtime.process.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        for pid in (str(server.process.pid), worker):
            assert Path(f"/proc/{pid}").stat().st_uid == uid
            assert b"HOME=" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert server.process.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in artifact.rglob("*")} == before


def test_it_serves_elsewhere_without_a_compiler_and_without_a_home(moved: Path) -> None:
    assert all(shutil.which(program, path=environment()["PATH"]) is None for program in ("cc", "gcc", "g++", "ld", "as", "sh"))
    serves(moved, (), os.getuid())


def test_it_serves_another_user_who_may_only_read(moved: Path) -> None:
    """The interpreter may lie in root's home: so this user may read everything, and write nothing."""
    if os.getuid() != 0:
        pytest.skip("only root becomes another user")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("there is no setpriv")
    user = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    launcher = (setpriv, *user, "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search", "--")
    if os.system(" ".join([*launcher, sys.executable, "-c", "pass"]) + " 2> /dev/null") != 0:
        pytest.skip("this container does not let root give a right away")
    serves(moved, launcher, NOBODY)
