"""Client programs from the registries, each in an environment of its own, made at its first use and kept beside the demo."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

from checkout import ROOT
from filelock import FileLock

KEPT = ROOT / ".demo" / "clients"


def python_with(name: str, *requirements: str) -> Path:
    """The Python of an environment that has `requirements`. What the tests themselves have, torch for one, it sees too."""

    def make(directory: Path) -> None:
        venv.create(directory, symlinks=True)
        (packages,) = directory.glob("lib/python*/site-packages")
        (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
        pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *requirements], check=True)

    return _kept(KEPT / name, requirements, make) / "bin" / "python"


def node_with(directory: Path, *packages: str) -> Path:
    """`directory`, with a node_modules that has `packages`."""

    def make(directory: Path) -> None:
        directory.mkdir(parents=True)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(directory)]
        subprocess.run([*npm, *packages], check=True)

    return _kept(directory, packages, make)


def _kept(directory: Path, wanted: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """`directory` as `make` made it for `wanted`; whatever else is there goes."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = directory / "made-for.json"
    with FileLock(f"{directory}.lock"):
        if not made.exists() or json.loads(made.read_text()) != list(wanted):
            shutil.rmtree(directory, ignore_errors=True)
            make(directory)
            made.write_text(json.dumps(wanted))
    return directory
