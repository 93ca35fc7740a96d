"""One entry of a store: a directory with its files, and a record of what they are and what they were made from.

    KIND/KEY/entry.json    digests of the files, the ingredients of the key, and a digest of the record itself
    KIND/KEY/...           the files

An entry appears by one rename and is never changed. Whatever does not match its record is treated
as if it were not there.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from filelock import lock_descriptor

from ...errors import ArtifactError
from ..locked_directory import locked_directory
from ..manifest import FileInfo
from .keys import KEY_DIGITS, Identity

RECORD = "entry.json"
_REMOVE = "engine cache verify --remove takes damaged entries away; the next build makes them anew"
REMOVING = "removing"
KINDS = ("program", "kernels", "segment", "plan", "quantizer")
"""What a store holds: the calls of a step, CPU kernel libraries, segments for CPU, launch plans with their cubins for NVIDIA, and what
builds quantize with."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """entry.json. digest: SHA-256 of the record with this field empty."""

    kind: str
    key: str
    files: dict[str, FileInfo]
    ingredients: dict[str, str]
    digest: str = ""

    @classmethod
    def of(cls, identity: Identity, contents: Mapping[str, bytes]) -> "Record":
        files = {name: FileInfo(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in sorted(contents.items())}
        record = cls(kind=identity.kind, key=identity.key, files=files, ingredients=identity.ingredients)
        return msgspec.structs.replace(record, digest=record._own_digest())

    def _own_digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, digest=""))).hexdigest()

    @property
    def identity(self) -> Identity:
        return Identity(kind=self.kind, key=self.key, ingredients=self.ingredients)

    @property
    def size(self) -> int:
        """Bytes of all the files."""
        return sum(info.bytes for info in self.files.values())

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A whole entry: its record, and the content of every file."""

    record: Record
    contents: dict[str, bytes]


def place(store: Path, kind: str, key: str) -> Path:
    """Where an entry lies."""
    return store / kind / key


def entry_places(store: Path) -> Iterator[Path]:
    """Every directory that looks like an entry. Whatever else is in the store is none of ours."""
    for kind in KINDS:
        for path in sorted((store / kind).glob("[0-9a-f]" * KEY_DIGITS)):
            if path.is_dir() and not path.is_symlink():
                yield path


def read_record(path: Path) -> Record:
    """The record of the entry at `path`. Raises ArtifactError if there is none that is whole and belongs there."""
    try:
        written = (path / RECORD).read_bytes()
        record = msgspec.json.decode(written, type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path / RECORD} cannot be read: {getattr(error, 'strerror', None) or error}", hint=_REMOVE) from None
    if record.digest != record._own_digest() or record.encode() != written:
        raise ArtifactError(f"{path / RECORD} is damaged", hint=_REMOVE)
    if (record.kind, record.key) != (path.parent.name, path.name):
        raise ArtifactError(f"{path / RECORD} belongs to another entry, {record.kind} {record.key}", hint=_REMOVE)
    if strange := [name for name in record.files if "/" in name or "\0" in name or name in ("", ".", "..", RECORD)]:
        raise ArtifactError(f"{path / RECORD} names a file that no entry has: {strange[0]!r}", hint=_REMOVE)
    return record


def read_entry(path: Path) -> Entry:
    """The entry at `path`, which nobody removes meanwhile. Raises ArtifactError if it is not there or not whole."""
    with in_use(path):
        record = read_record(path)
        contents = {}
        for name, info in record.files.items():
            try:
                contents[name] = (path / name).read_bytes()
            except OSError as error:
                raise ArtifactError(f"{path / name} cannot be read: {error.strerror}", hint=_REMOVE) from None
            if hashlib.sha256(contents[name]).hexdigest() != info.sha256:
                raise ArtifactError(f"{path / name} is damaged: its SHA-256 is not what {RECORD} says", hint=_REMOVE)
        return Entry(record=record, contents=contents)


def last_use(path: Path) -> float:
    """When the entry at `path` was last used, in seconds since the epoch; 0 if it has no record."""
    try:
        return (path / RECORD).stat().st_mtime
    except OSError:
        return 0.0


def mark_used(path: Path) -> None:
    """Make now the entry's last use. In a store that cannot be written nobody needs to know."""
    with suppress(OSError):
        os.utime(path / RECORD)


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """While the body runs nobody removes the entry at `path`. Raises ArtifactError if it is not there."""
    try:
        handle = _lock(path, _share)
    except OSError as error:
        raise ArtifactError(f"{path} is not there: {error.strerror}", hint=_REMOVE) from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def unused(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether nobody uses the entry at `path`; if so, nobody can until the body ends. wait: for its readers, who take milliseconds."""
    try:
        handle = _lock(path, partial(lock_descriptor, blocking=wait, poll_interval=0.01))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)


def _share(handle: int) -> bool:
    """filelock has no shared locks that need nothing written, which a store on a read-only disk needs."""
    fcntl.flock(handle, fcntl.LOCK_SH)
    return True


def _lock(path: Path, take: Callable[[int], bool]) -> int:
    """A handle of the directory at `path` that holds a lock on it. Raises OSError if that is not to be had, or the path no longer its."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not take(handle):
            raise BlockingIOError(errno.EAGAIN, "it is in use")
        if not os.path.samestat(path.stat(), os.fstat(handle)):
            raise FileNotFoundError(errno.ENOENT, "it was just replaced")
    except OSError:
        os.close(handle)
        raise
    return handle


def remove(path: Path, *, wait: bool = False) -> bool:
    """Remove the entry at `path`, at once for whoever looks, unless it is in use. Returns whether it is gone."""
    with unused(path, wait=wait) as free:
        if free:
            with locked_directory(path.parent.parent, REMOVING) as trash:
                path.rename(trash / "entry")
        return free
