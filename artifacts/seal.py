"""From a directory in progress to an artifact, in one rename: the last stage of a build, and of whatever else makes artifacts.

A build works in `.DIR.building-XXXX` beside DIR. The manifest is written last and everything
is on disk before the rename, so nothing half-written can ever be taken for an artifact; what a
killed build leaves is removed by the next build of the same DIR.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BuildError, UsageError
from .files import file_digest
from .locked_directory import locked_directory, remove_abandoned
from .manifest import MANIFEST_NAME, FileInfo, Manifest


@contextmanager
def building(output: Path, *, force: bool) -> Iterator[Path]:
    """A scratch directory for the artifact that will be at `output`; removed if the body fails.

    Raises UsageError if `output` exists and `force` is not set, or is not an artifact of ours, and
    BuildError if the disk does not cooperate.
    """
    check_replaceable(output, force=force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(output.parent, _in_progress(output))
        with locked_directory(output.parent, _in_progress(output)) as scratch:
            yield scratch
    except OSError as error:
        hint = "free some space, or choose another place with -o"
        raise BuildError(f"writing {output} failed: {error.strerror or error}", hint=hint) from error


def file_infos(directory: Path) -> dict[str, FileInfo]:
    """Size and digest of every file under `directory` but the manifest, by relative name."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(directory).as_posix(): FileInfo(bytes=path.stat().st_size, sha256=file_digest(path)) for path in paths}


def write_manifest(directory: Path, manifest: Manifest, raw: bytes | None = None) -> None:
    """Write the manifest durably: everything it lists is on disk when this returns. raw: its bytes, if it came as such."""
    for path in [*(directory / name for name in manifest.files), directory]:
        _sync(path)
    temporary = directory / (MANIFEST_NAME + ".new")
    temporary.write_bytes(raw or manifest.encode())
    _sync(temporary)
    temporary.replace(directory / MANIFEST_NAME)
    _sync(directory)


def seal(scratch: Path, output: Path) -> None:
    """Rename the finished directory into place, replacing an artifact that is there."""
    if output.exists():
        with locked_directory(output.parent, _in_progress(output)) as old:
            output.rename(old / "replaced")
            scratch.rename(output)
    else:
        scratch.rename(output)
    _sync(output.parent)


def _in_progress(output: Path) -> str:
    return f"{output.name}.building"


def check_replaceable(output: Path, *, force: bool) -> None:
    """Raise UsageError if something is at `output` that must not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST_NAME).exists():
        raise UsageError(f"{output} exists and is not an artifact", hint="choose another place with -o; nothing was changed")
    if not force:
        raise UsageError(f"{output} is an artifact already", hint="replace it with --force, or choose another place with -o")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
