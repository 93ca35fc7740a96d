"""`engine serve --verify-weights`: damaged weights are noticed before the first request, or beside the others, or not at all."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_stand_in import byte_level_tokenizer, edit_manifest, seal, with_tokenizer
from patience import PATIENCE, wait_until
from rich_artifact import read_unchecked, write_rich_artifact
from serving_process import WORKER, ServingProcess
from toy_gpu_artifact import write_toy_artifact
from toy_gpu_worker import COMMAND

from engine.artifacts import Manifest, background_check, load_manifest
from engine.artifacts.files import file_digest
from engine.errors import RequestError
from engine.server.llm import LLM, Params
from engine.server.workers.fleet import Fleet

WEIGHTS = "weights/0.safetensors"
LONG = 2 << 30
"""Bytes that take the check, at its tenth of a core, many seconds."""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_rich_artifact(tmp_path / "artifact")
    return tmp_path / "artifact"


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def metrics(server: ServingProcess) -> tuple[float, float]:
    """Of weights: verified, damaged."""
    lines = dict(line.split(" ", 1) for line in server.http.get("/metrics").text.splitlines() if line.startswith("engine_weights_"))
    return float(lines["engine_weights_verified"]), float(lines["engine_weights_damaged"])


def toy(directory: Path) -> Manifest:
    """An artifact for the stand-in for a GPU, with a tokenizer."""
    return with_tokenizer(directory, write_toy_artifact(directory, vocab_size=byte_level_tokenizer().get_vocab_size()))


def failure(artifact: Path, **options: Any) -> str:
    """What a server says that refuses the artifact."""
    server = ServingProcess(artifact, **options)
    with pytest.raises(AssertionError, match="no line like"), server:
        server.ready()
    assert server.process.returncode == 6
    return server.log()


def test_damage_that_is_found_beside_serving_ends_it(artifact: Path) -> None:
    damage(artifact / WEIGHTS)
    with ServingProcess(artifact) as server:
        server.line_with(rf"ERROR: no request is served any more: {artifact}/{WEIGHTS} is damaged: SHA-256")
        assert metrics(server) == (0, 1)
        health = server.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "damaged")
        answer = server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "artifact_damaged"
    assert server.process.returncode == 6
    assert "starting another" not in server.log()


def test_requests_that_run_when_damage_is_found_are_cut_off(artifact: Path) -> None:
    async def fail(fleet: Fleet) -> None:
        fleet.fail()

    worker = (sys.executable, "-P", str(WORKER), "--step", "0.01")
    with LLM(artifact, worker_command=worker) as llm:
        pieces = iter(llm.stream([5, 6, 7], Params(max_tokens=400, temperature=0, ignore_eos=True)))
        next(pieces)
        llm._loop.call(fail(llm._fleet))
        with pytest.raises(RequestError, match="its artifact is damaged") as caught:
            list(pieces)
        assert caught.value.code == "artifact_damaged"
        assert llm._running.result() is None
        assert llm._fleet.replicas[0].life.restarts == 0
        with pytest.raises(RequestError, match="its artifact is damaged"):
            llm.generate(["more"])


def test_whole_weights_are_said_to_be_so(artifact: Path) -> None:
    with ServingProcess(artifact) as server:
        server.line_with("the weights are those that were built")
        assert metrics(server) == (1, 0)
        assert server.http.get("/health").status_code == 200
    assert server.process.returncode == 0


def test_without_a_check_nothing_is_known(artifact: Path) -> None:
    damage(artifact / WEIGHTS)
    with ServingProcess(artifact, verify_weights="off") as server:
        server.ready()
        assert metrics(server) == (0, 0)
        assert server.http.get("/health").status_code == 200
    assert server.process.returncode == 0


def test_a_server_that_is_stopped_takes_its_check_along(artifact: Path) -> None:
    os.truncate(artifact / WEIGHTS, LONG)
    edit_manifest(artifact, lambda content: content["files"][WEIGHTS].update(bytes=LONG))
    with ServingProcess(artifact) as server:
        server.ready()
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        wait_until(lambda: len(children.read_text().split()) == 2)
        (check,) = [pid for pid in children.read_text().split() if b"background_check" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, int(check)) == background_check.NICENESS)
    assert server.process.returncode == 0
    assert not Path(f"/proc/{check}").exists()


def test_damage_that_is_looked_for_first_is_never_served(tmp_path: Path) -> None:
    """The real worker, over the stand-in for a GPU."""
    manifest = toy(tmp_path / "artifact")
    options: dict[str, Any] = {
        "worker_command": COMMAND,
        "kv_memory": 16 * manifest.caches[0].bytes_per_block,
        "verify_weights": "before",
        "max_num_seqs": 4,
    }
    with ServingProcess(tmp_path / "artifact", max_batch_tokens=16, **options) as server:
        server.line_with(r"verify_weights \S+ s")
        server.ready()
        assert metrics(server) == (1, 0)
    assert server.process.returncode == 0
    damage(tmp_path / "artifact" / "weights" / "b.safetensors")
    assert "weights/b.safetensors is damaged" in failure(tmp_path / "artifact", max_batch_tokens=16, **options)


def test_a_worker_loads_no_other_artifact_than_the_one_that_is_wanted(tmp_path: Path) -> None:
    toy(tmp_path / "artifact")
    options: dict[str, Any] = {"worker_command": COMMAND, "kv_memory": 1 << 20}
    assert "is not the artifact that was asked for: its digest is" in failure(tmp_path / "artifact", digest="0" * 64, **options)


def test_the_check_by_itself(artifact: Path) -> None:
    """Exit code and message are what the server reads; it ends when its standard input does."""
    command = [sys.executable, "-P", "-m", "engine.artifacts.background_check", str(artifact), load_manifest(artifact).digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.wait(PATIENCE) == 0
    done = subprocess.run([*command[:-1], "0" * 64], stdin=subprocess.PIPE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (background_check.REPLACED, "")
    assert "not the artifact that was asked for" in done.stderr
    os.truncate(artifact / WEIGHTS, 4 * background_check.PIECE_BYTES)
    seal(artifact, read_unchecked(artifact))
    command[-1] = load_manifest(artifact).digest
    damage(artifact / WEIGHTS)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "weights/0.safetensors is damaged" in process.stdout.read()
        assert process.wait(PATIENCE) == 6
    early = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (early.returncode, early.stdout) == (0, "")


def test_the_paced_digest_is_the_digest(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_check, "_pause", lambda seconds: None)
    (artifact / WEIGHTS).write_bytes(os.urandom(3 * background_check.PIECE_BYTES + 17))
    assert background_check._paced_digest(artifact / WEIGHTS) == file_digest(artifact / WEIGHTS)
