"""Builds that share a store at the same time: each thing is compiled once, and killed builds harm nobody.

    pytest tests/artifacts/test_store_concurrency.py --real-rounds 20

does the same with whole builds of a small model: minutes per round.
"""

import collections
import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build_swarm import FORMS, swarm
from checkout import ROOT
from patience import wait_until

from engine.artifacts import load_manifest, verify
from engine.artifacts.store.store import Store
from engine.artifacts.store.upkeep import damaged, held, prune

BUILDS = 8


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def commands(directory: Path, seed: int) -> list[list[str]]:
    (directory / "log").mkdir(parents=True)
    script = [sys.executable, "-P", str(ROOT / "tests" / "support" / "build_swarm.py"), str(directory / "store")]
    return [[*script, str(directory / f"artifact-{index}"), str(directory / "log"), str(seed + index)] for index in range(BUILDS)]


def test_eight_builds_compile_each_thing_once(tmp_path: Path) -> None:
    assert swarm(commands(tmp_path, 0), kills=0, within=0.0, seed=0) == [0] * BUILDS
    compiled = collections.Counter(path.name.partition("-")[0] for path in (tmp_path / "log").iterdir())
    assert sorted(compiled.values()) == [1] * (len(FORMS) + 1)
    artifacts = [contents(tmp_path / f"artifact-{index}") for index in range(BUILDS)]
    assert all(artifact == artifacts[0] for artifact in artifacts)
    assert len(artifacts[0]) == 2 * len(FORMS) + 1


def test_the_survivors_of_four_killed_builds_have_the_same_code(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for seed in range(max(2, request.config.getoption("--real-rounds"))):
        _check_survivors(tmp_path / f"round-{seed}", seed)


def _check_survivors(directory: Path, seed: int) -> None:
    assert swarm(commands(directory, seed), kills=4, within=4.0, seed=seed) == [0] * 4
    store = Store(directory / "store")
    assert damaged(store, remove_them=False) == {}
    prune(store)
    assert len(held(store)) == len(FORMS) + 1
    assert [path.name for path in store.directory.iterdir() if path.name.startswith(".")] == []
    assert list((store.directory / "locks").iterdir()) == []
    stored = {path.name: path.read_bytes() for path in store.directory.glob("*/*/*") if path.suffix in (".so", ".part")}
    whole = 0
    for index in range(BUILDS):
        artifact = {
            Path(name).name: content for name, content in contents(directory / f"artifact-{index}").items() if ".lower-" not in name
        }
        whole += artifact == stored
    assert whole >= 4


def test_compilers_end_with_a_build_that_is_killed_alone(tmp_path: Path) -> None:
    """As the kernel kills for lack of memory: only the process that is largest."""
    command = [*commands(tmp_path, 0)[0], "--seconds", "600"]
    with subprocess.Popen(command, start_new_session=True) as build:
        wait_until(lambda: build.poll() is not None or list(tmp_path.glob("artifact-0/.lower-*/*/started")))
        assert build.poll() is None
        assert len(group(build.pid)) > 1
        build.kill()
    wait_until(lambda: not group(build.pid))


def group(leader: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, process_group = path.joinpath("stat").read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == leader and state != "Z":
                found.append(int(path.name))
    return found


@pytest.mark.timeout(100_000)
def test_whole_builds(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rounds = request.config.getoption("--real-rounds")
    if not rounds:
        pytest.skip("takes minutes per round: --real-rounds N")
    checkpoint = request.getfixturevalue("tiny_checkpoint")
    duration = 120.0
    for number in range(rounds):
        directory = tmp_path / f"round-{number}"
        build = [str(Path(sys.executable).with_name("engine")), "build", str(checkpoint), "--store", str(directory / "store")]
        built = [[*build, "-o", str(directory / f"artifact-{index}"), "--jobs", "1"] for index in range(BUILDS)]
        start = time.monotonic()
        assert swarm(built, kills=4, within=0.8 * duration, seed=number) == [0] * 4
        duration = time.monotonic() - start
        assert damaged(Store(directory / "store"), remove_them=False) == {}
        code = set()
        survivors = list(directory.glob("artifact-*"))
        for artifact in survivors:
            manifest = load_manifest(artifact)
            verify(artifact, manifest)
            code.add(json.dumps({name: manifest.files[name].sha256 for name in sorted(manifest.code_files)}))
        assert len(survivors) >= 4
        assert len(code) == 1
        print(f"round {number}: {duration:.0f} s, {len(survivors)} artifacts of the same code")
        shutil.rmtree(directory)
