"""The store: what builds compiled, by key, shared by every build on a machine.

    store.json         the version of this format
    KIND/KEY/          one entry (store_entry.py)
    locks/KIND-KEY     locked by the build that makes the entry; others wait for it instead of making it too

Entries are whole or absent to whoever reads, also when writers are killed or the disk is full. A
store that cannot be written costs time, never a build: `add` then keeps nothing and `refusal` says
why.
"""

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from ...errors import ArtifactError, UsageError
from ..locked_directory import locked_directory, remove_abandoned
from .claim import Claim
from .entry import RECORD, REMOVING, Entry, Record, entry_places, mark_used, place, read_entry, read_record, remove
from .keys import Identity

FORMAT = 1
FORMAT_FILE = "store.json"
VARIABLE = "ENGINE_STORE"
ADDING, LOCKS = "adding", "locks"
PATIENCE = 0.1
"""Seconds between two looks at what another process is making."""


def chosen_store(directory: Path | None) -> Path:
    """The store to use: `directory` (--store), else $ENGINE_STORE, else one in the user's cache directory.

    Raises UsageError for a variable that names no place for one.
    """
    if directory is not None:
        return directory
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_absolute():
            raise UsageError(
                f"{VARIABLE} is {named!r}, which is not an absolute path", hint="it means the same in every directory: /var/cache/engine"
            )
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "engine" / f"store-{FORMAT}"


class Store:
    """A directory of entries; need not exist yet. refusal: why something could not be kept, empty while everything was.

    Raises UsageError for a path that is no directory, or a directory that is no store of this format.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.refusal = ""
        self._checked = False
        _check_format(directory)

    def find(self, identity: Identity) -> Entry | None:
        """The entry, verified and read, if there is a whole one. Makes now its last use."""
        path = self._place(identity)
        try:
            entry = read_entry(path)
        except ArtifactError:
            return None
        mark_used(path)
        return entry

    def add(self, identity: Identity, contents: Mapping[str, bytes]) -> None:
        """Keep the files of an entry, unless there is a whole one already. Where that fails nothing is visible, and `refusal` says why."""
        try:
            self.write(identity, contents)
        except OSError as error:
            self._refuse(error)

    def write(self, identity: Identity, contents: Mapping[str, bytes]) -> None:
        """As `add`. Raises OSError where the disk does not cooperate."""
        self._prepare()
        with locked_directory(self.directory, ADDING) as scratch:
            made = scratch / "entry"
            made.mkdir()
            for name, content in {**contents, RECORD: Record.of(identity, contents).encode()}.items():
                _write_durably(made / name, content)
            self._publish(made, self._place(identity))

    def claim(self, identity: Identity) -> Claim | None:
        """The right to make an entry, or None while another process has it. In a store that cannot be written everybody has it."""
        try:
            self._prepare()
            return Claim.try_for(self.directory / LOCKS / f"{identity.kind}-{identity.key}")
        except OSError as error:
            self._refuse(error)
            return Claim()

    def wait_for_claim(self, identity: Identity) -> Claim:
        """As `claim`, once nobody else has it. For callers that hold no other claim."""
        while (claim := self.claim(identity)) is None:
            time.sleep(PATIENCE)
        return claim

    def records(self) -> Iterator[Record]:
        """Of every entry whose record is whole; the files are not looked at."""
        for path in entry_places(self.directory):
            try:
                yield read_record(path)
            except ArtifactError:
                continue

    def _place(self, identity: Identity) -> Path:
        return place(self.directory, identity.kind, identity.key)

    def _prepare(self) -> None:
        """Make the directory a store that can be written. Raises OSError if it cannot be."""
        if self._checked:
            return
        (self.directory / LOCKS).mkdir(parents=True, exist_ok=True)
        for name in (ADDING, REMOVING):
            remove_abandoned(self.directory, name)
        if not (self.directory / FORMAT_FILE).exists():
            with locked_directory(self.directory, ADDING) as scratch:
                _write_durably(scratch / FORMAT_FILE, json.dumps({"format": FORMAT}).encode() + b"\n")
                (scratch / FORMAT_FILE).replace(self.directory / FORMAT_FILE)
        self._checked = True

    def _publish(self, made: Path, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        if not _renamed(made, path) and not _is_whole(path):
            remove(path, wait=True)
            _renamed(made, path)

    def _refuse(self, error: OSError) -> None:
        self.refusal = self.refusal or error.strerror or str(error)


def _renamed(made: Path, path: Path) -> bool:
    """Whether `made` is now at `path`: not where something else is already."""
    try:
        made.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _is_whole(path: Path) -> bool:
    try:
        read_entry(path)
    except ArtifactError:
        return False
    return True


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check_format(directory: Path) -> None:
    """Raises UsageError if `directory` is there and holds anything else than a store of this format."""
    where = f"another place is chosen with --store DIR or {VARIABLE}"
    try:
        found = msgspec.json.decode((directory / FORMAT_FILE).read_bytes())
    except FileNotFoundError:
        if directory.exists() and any(not name.startswith(".") and name != LOCKS for name in os.listdir(directory)):
            raise UsageError(
                f"{directory} is not a store: it holds other files, and no {FORMAT_FILE}",
                hint=f"a store is an empty or a new directory at first (one of an earlier version can be removed); {where}",
            ) from None
        return
    except (OSError, msgspec.DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{FORMAT_FILE} is damaged"
        raise UsageError(f"the store {directory} cannot be used: {reason}", hint=where) from None
    if found != {"format": FORMAT}:
        raise UsageError(
            f"the store {directory} was made by another version of Engine: {FORMAT_FILE} says {found}, this version has format {FORMAT}",
            hint=f"{where}; what is in this one stays as it is",
        )
