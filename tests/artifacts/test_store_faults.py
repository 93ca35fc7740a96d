"""Disks that are full or cannot be written: the build goes on, says so, and leaves nothing half-made in the store."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from build_swarm import FORMS, lower_all
from mounts import read_only, small_disk

from engine.artifacts.store.store import Store
from engine.artifacts.store.upkeep import damaged, held
from engine.cli import main

THINGS = len(FORMS) + 1


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


def files_of(artifact: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in artifact.glob("*/*")}


def test_a_full_disk_costs_the_store_and_not_the_build(log: Path, tmp_path: Path) -> None:
    """It takes one entry of 200 kB, and not two."""
    with small_disk(tmp_path / "disk", "300k") as disk:
        store = Store(disk / "store")
        assert lower_all(store, tmp_path / "first", log) == {"compiled": THINGS, "reused": 0, "waited": 0}
        assert store.refusal == "No space left on device"
        assert len(held(store)) == 1
        assert damaged(store, remove_them=False) == {}
        assert [path.name for path in store.directory.iterdir() if path.name.startswith(".")] == []
        assert len(files_of(tmp_path / "first")) == 2 * len(FORMS) + 1
        # What is there is used all the same.
        again = Store(disk / "store")
        assert lower_all(again, tmp_path / "second", log) == {"compiled": THINGS - 1, "reused": 1, "waited": 0}


def test_a_disk_that_is_full_from_the_start(log: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        filled = subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'filler'}"], capture_output=True, text=True, check=False)
        assert "No space left" in filled.stderr
        store = Store(disk / "store")
        assert lower_all(store, tmp_path / "artifact", log)["compiled"] == THINGS
        assert store.refusal == "No space left on device"
        assert held(store) == []


def test_a_read_only_store_is_read(log: Path, tmp_path: Path) -> None:
    writable = Store(tmp_path / "store")
    lower_all(writable, tmp_path / "first", log)
    missing = held(writable)[0].path
    shutil.rmtree(missing)
    before = sorted(tmp_path.glob("store/**/*"))
    with read_only(tmp_path / "store", tmp_path / "mounted") as mounted:
        store = Store(mounted)
        assert lower_all(store, tmp_path / "second", log) == {"compiled": 1, "reused": THINGS - 1, "waited": 0}
        assert store.refusal == "Read-only file system"
    assert sorted(tmp_path.glob("store/**/*")) == before
    first, second = files_of(tmp_path / "first"), files_of(tmp_path / "second")
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= {f"{missing.name}.so", f"{missing.name}.part"}


def test_a_read_only_directory_without_a_store(log: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with read_only(tmp_path / "empty", tmp_path / "mounted") as mounted:
        store = Store(mounted / "store")
        assert lower_all(store, tmp_path / "artifact", log)["compiled"] == THINGS
        assert store.refusal == "Read-only file system"


def test_a_store_of_another_user(log: Path, tmp_path: Path) -> None:
    """Without root's rights, in a child: what can be read is used, and the rest compiled."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    lower_all(Store(tmp_path / "store"), tmp_path / "first", log)
    shutil.rmtree(held(Store(tmp_path / "store"))[0].path)
    code = "import os, sys; from pathlib import Path\n"
    code += "from engine.artifacts.store.store import Store; from engine.artifacts.store.keys import Identity\n"
    code += "os.setgid(65534); os.setuid(65534)\n"  # only now: Python itself may be for root alone
    code += "store = Store(Path(sys.argv[1])); kept = next(iter(store.records())).identity\n"
    code += "other = Identity(kind='plan', key='0' * 32, ingredients={})\n"
    code += "store.add(other, {'a': b''}); print(store.find(kept) is not None, store.claim(other) is not None, store.refusal)"
    for directory in (tmp_path, *tmp_path.parents):  # pytest's are for their owner alone
        if directory.is_relative_to(tempfile.gettempdir()) and directory.owner() == "root" and not directory.stat().st_mode & 0o1000:
            directory.chmod(0o755)
    done = subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "store")], capture_output=True, text=True, check=False)
    assert done.stdout == "True True Permission denied\n", done.stderr


def test_commands_that_write_say_that_they_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str], log: Path) -> None:
    lower_all(Store(tmp_path / "store"), tmp_path / "artifact", log)
    with read_only(tmp_path / "store", tmp_path / "mounted") as mounted:
        assert main(["cache", "prune", "--max-size", "0", "--store", str(mounted)]) == 5
        assert "cannot be pruned: Read-only file system" in capsys.readouterr().err
        assert main(["cache", "import", str(tmp_path / "store"), "--store", str(mounted / "new")]) == 5
        assert "cannot be written: Read-only file system" in capsys.readouterr().err
        assert main(["cache", "verify", "--store", str(mounted)]) == 0
        assert main(["cache", "stats", "--store", str(mounted)]) == 0
