"""The checkout that the tests run in: which of its files are ours."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MADE_HERE = {"build", "dist", "__pycache__"}


@cache
def our_files() -> tuple[str, ...]:
    """Paths, relative to the root, of the files that git tracks, and of new ones beside them.

    What else lies about, an artifact for one, is the user's. In a copy of the tree that has no git, all
    files are ours that nothing has made.
    """
    tracked = _listed("--cached")
    folders = {name.rpartition("/")[0] for name in tracked}
    names = [*tracked, *(name for name in _listed("--others") if name.rpartition("/")[0] in folders - {""})] if tracked else _walk()
    return tuple(sorted(name for name in names if os.path.lexists(ROOT / name)))


def _listed(which: str) -> list[str]:
    """What git lists, without what it ignores; nothing if this is not the root of a checkout."""
    if not (ROOT / ".git").exists():
        return []
    done = subprocess.run(["git", "ls-files", "-z", "--exclude-standard", which], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]


def _walk() -> list[str]:
    found = []
    for directory, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not (name.startswith(".") or name.endswith(".egg-info") or name in MADE_HERE)]
        found += [str(Path(directory, file).relative_to(ROOT)) for file in files if not file.startswith(".")]
    return found


def copy_checkout(destination: Path, *, but: str | None = None) -> None:
    """Copy our files to `destination`, those of the top folder `but` left out."""
    for name in our_files():
        if but is None or not name.startswith(f"{but}/"):
            place = destination / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place, follow_symlinks=False)


def build_wheel(source: Path, output: Path) -> Path:
    """A wheel built from a copy of the tree at `source`, so that no build folder appears in the tree itself."""
    copy_checkout(source)
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(output)!r})"
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = output.iterdir()
    return path
