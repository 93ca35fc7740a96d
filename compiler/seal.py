"""Stage 8: from a directory in progress to an artifact, in one rename.

A build works in `.DIR.building-XXXX` beside DIR. The manifest is written last and everything
is on disk before the rename, so nothing half-written can ever be taken for an artifact; what a
killed build leaves is removed by the next build of the same DIR.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..artifacts import FileInfo, Manifest
from ..artifacts.files import file_digest
from ..artifacts.manifest import MANIFEST_NAME
from ..errors import BuildError, UsageError


@contextmanager
def building(output: Path, *, force: bool) -> Iterator[Path]:
    """A scratch directory for the artifact that will be at `output`; removed if the body fails.

    Raises UsageError if `output` exists and `force` is not set, or is not an artifact of ours, and
    BuildError if the disk does not cooperate.
    """
    _check_replaceable(output, force=force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(output)
        with _locked_directory(output) as scratch:
            yield scratch
    except OSError as error:
        hint = "free some space, or choose another place with -o"
        raise BuildError(f"writing {output} failed: {error.strerror or error}", hint=hint) from error


def file_infos(directory: Path) -> dict[str, FileInfo]:
    """Size and digest of every file under `directory` but the manifest, by relative name."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(directory).as_posix(): FileInfo(bytes=path.stat().st_size, sha256=file_digest(path)) for path in paths}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest durably: everything the directory holds is on disk when this returns."""
    for path in [*(directory / name for name in manifest.files), directory]:
        _sync(path)
    temporary = directory / (MANIFEST_NAME + ".new")
    temporary.write_bytes(manifest.encode())
    _sync(temporary)
    temporary.replace(directory / MANIFEST_NAME)
    _sync(directory)


def seal(scratch: Path, output: Path) -> None:
    """Rename the finished directory into place, replacing an artifact that is there."""
    if output.exists():
        with _locked_directory(output) as old:
            output.rename(old / "replaced")
            scratch.rename(output)
    else:
        scratch.rename(output)
    _sync(output.parent)


@contextmanager
def _locked_directory(output: Path) -> Iterator[Path]:
    """A directory beside `output` that no other build takes for an abandoned one while the body runs."""
    unlocked = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.new-"))
    handle = os.open(unlocked, os.O_RDONLY)
    path = unlocked
    try:
        unlocked.chmod(0o755)
        fcntl.flock(handle, fcntl.LOCK_EX)
        path = unlocked.rename(unlocked.with_name(_prefix(output) + unlocked.name.rpartition("-")[2]))
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _prefix(output: Path) -> str:
    return f".{output.name}.building-"


def _check_replaceable(output: Path, *, force: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST_NAME).exists():
        raise UsageError(f"{output} exists and is not an artifact", hint="choose another place with -o; nothing was changed")
    if not force:
        raise UsageError(f"{output} is an artifact already", hint="replace it with --force, or choose another place with -o")


def _remove_abandoned(output: Path) -> None:
    """Remove what killed builds of the same output left: their locks died with them."""
    for path in output.parent.glob(_prefix(output) + "*"):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its build has just ended
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its build is at work
        finally:
            os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
