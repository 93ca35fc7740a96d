"""The checkout that the tests run in: which of its files are ours."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MADE_HERE = {"build", "dist", "__pycache__"}


def is_ours(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".egg-info") and name not in MADE_HERE


def build_wheel(source: Path, output: Path) -> Path:
    """A wheel built from a copy of the tree at `source`, so that no build folder appears in the tree itself."""
    shutil.copytree(ROOT, source, symlinks=True, ignore=lambda _, names: [name for name in names if not is_ours(name)])
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(output)!r})"
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = output.iterdir()
    return path
