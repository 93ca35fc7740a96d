"""The files of an artifact, compared with what its manifest lists."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import ArtifactError
from .manifest import FileInfo
from .printable import printable

_WORTH_A_THREAD = 256 << 10
"""Bytes of a file below which handing it to another thread takes longer than reading it: artifacts for GPUs have hundreds of them."""


class Fault(NamedTuple):
    """What is wrong with a file: `name` and `text` are a sentence."""

    name: str
    kind: Literal["missing", "size", "damaged", "foreign", "unlisted"]
    text: str


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(directory: Path, name: str, *, most: int) -> bytes:
    """A file of the artifact, of at most `most` bytes. Raises FileNotFoundError if there is none, ArtifactError for anything else."""
    found = _look(os.path.realpath(directory), name)
    if isinstance(found, Fault):
        if found.kind == "missing":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory / name))
        raise refusal(directory, [found])
    if found > most:
        raise ArtifactError(f"{directory / name} has {found:,} bytes: it is something else", hint="build or copy the artifact again")
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{directory / name} cannot be read: {error.strerror}", hint="look at its permissions and at the disk"
        ) from error


def faults_in(
    directory: Path,
    files: Mapping[str, FileInfo],
    digests: Collection[str],
    on_file: Callable[[str, int], None] | None = None,
    *,
    digest: Callable[[Path], str] = file_digest,
    threads: int | None = None,
) -> list[Fault]:
    """What is wrong with `files`: each must be a file in `directory` of its size, and those of `digests` have their SHA-256.

    on_file(name, bytes) is called after each whose digest holds. digest: computes it. threads: how
    many do, at most. A link that leads out of the directory is not followed.
    """
    root = os.path.realpath(directory)
    faults = {name: fault for name, info in files.items() if (fault := _place_and_size(root, name, info))}
    readable = set(digests) - faults.keys()
    wanted = [name for name in files if name in readable]
    with ThreadPoolExecutor(threads) as pool:  # hashlib releases the GIL
        large = {name: pool.submit(_try, digest, directory, name) for name in wanted if files[name].bytes >= _WORTH_A_THREAD}
        for name in wanted:
            found = large[name].result() if name in large else _try(digest, directory, name)
            if isinstance(found, Fault):
                faults[name] = found
            elif found != files[name].sha256:
                faults[name] = _damaged(name, found, files[name])
            elif on_file:
                on_file(name, files[name].bytes)
    return [faults[name] for name in files if name in faults]


def unlisted(directory: Path, listed: Collection[str]) -> list[Fault]:
    """Every file in the directory that is not in `listed`; links are files. Raises ArtifactError for a folder that cannot be read."""
    try:
        found = sorted(_walk(directory))
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}", hint="look at its permissions and at the disk") from error
    return [Fault(name, "unlisted", "is not listed in the manifest") for name in found if name not in listed]


def refusal(directory: Path, faults: Sequence[Fault]) -> ArtifactError:
    """The error that names all of them."""
    kinds = {fault.kind for fault in faults}
    hint = "never serve this copy; build or copy the artifact again"
    if kinds <= {"missing", "size"}:
        hint = "the artifact was copied incompletely; copy or build it again"
    elif kinds == {"unlisted"}:
        hint = "no build wrote this: remove it, or copy the artifact again"
    lines = [f"{printable(fault.name)} {fault.text}" for fault in faults]
    if len(lines) == 1:
        return ArtifactError(f"{directory}/{lines[0]}", hint=hint)
    return ArtifactError("\n  ".join([f"{directory} is not as it was built, {len(lines)} files are at fault:", *lines]), hint=hint)


def _look(root: str, name: str) -> int | Fault:
    """The size of a file, if it is one and lies in the directory, whose real path is `root`."""
    real = os.path.realpath(f"{root}/{name}")
    if not real.startswith(root.rstrip("/") + "/"):
        return Fault(name, "foreign", "is a link that leads out of the artifact")
    try:
        found = os.stat(real)
    except (FileNotFoundError, NotADirectoryError):
        return Fault(name, "missing", "is missing")
    except OSError as error:
        return Fault(name, "foreign", f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(found.st_mode):
        return Fault(name, "foreign", "is not a regular file")
    return found.st_size


def _place_and_size(root: str, name: str, info: FileInfo) -> Fault | None:
    found = _look(root, name)
    if isinstance(found, Fault):
        return found
    if found != info.bytes:
        return Fault(name, "size", f"has {found:,} bytes, the manifest says {info.bytes:,}")
    return None


def _try(digest: Callable[[Path], str], directory: Path, name: str) -> str | Fault:
    try:
        return digest(directory / name)
    except OSError as error:
        return Fault(name, "foreign", f"cannot be read: {error.strerror}")


def _damaged(name: str, digest: str, info: FileInfo) -> Fault:
    return Fault(name, "damaged", f"is damaged: SHA-256 {digest[:16]}…, the manifest says {info.sha256[:16]}…")


def _walk(directory: Path) -> Iterator[str]:
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(directory / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                else:
                    yield name
