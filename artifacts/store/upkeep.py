"""What a store holds, whether it is whole, and making it smaller."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ArtifactError
from ..locked_directory import remove_abandoned
from .claim import Claim
from .entry import REMOVING, entry_places, last_use, read_entry, remove
from .store import ADDING, LOCKS, Store

_DAY = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Held:
    """One entry on the disk. bytes: all its files, the record included. last_use: seconds since the epoch."""

    path: Path
    bytes: int
    last_use: float

    @property
    def kind(self) -> str:
        return self.path.parent.name


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `prune` did: entries removed, entries that were in use and stayed, and what is left."""

    removed: Sequence[Held]
    in_use: Sequence[Held]
    bytes_left: int


def held(store: Store) -> list[Held]:
    """Every entry, the one that was used longest ago first; damaged ones too."""
    entries = [Held(path=path, bytes=_size(path), last_use=last_use(path)) for path in entry_places(store.directory)]
    return sorted(entries, key=lambda entry: entry.last_use)


def damaged(store: Store, *, remove_them: bool) -> dict[Path, str]:
    """Every entry that is not whole, and what is wrong with it. remove_them: builds treat them as absent in any case."""
    found = {}
    for path in entry_places(store.directory):
        try:
            read_entry(path)
        except ArtifactError as error:
            if path.exists():  # else it was removed while we looked
                found[path] = error.message
                if remove_them:
                    remove(path, wait=True)
    return found


def prune(store: Store, *, max_bytes: int | None = None, unused_for_days: float | None = None) -> Pruned:
    """Remove what was not used for so long, then what was used longest ago, until the rest fits.

    Removes nothing that a running build is reading, and nothing that is not an entry. What killed builds left goes as well.
    """
    for name in (ADDING, REMOVING):
        remove_abandoned(store.directory, name)
    _remove_free_locks(store.directory / LOCKS)
    entries = held(store)
    left = sum(entry.bytes for entry in entries)
    oldest = float("-inf") if unused_for_days is None else time.time() - unused_for_days * _DAY
    removed, in_use = [], []
    for entry in entries:
        if entry.last_use >= oldest and (max_bytes is None or left <= max_bytes):
            continue
        if remove(entry.path):
            removed.append(entry)
            left -= entry.bytes
        elif entry.path.exists():
            in_use.append(entry)
    return Pruned(removed=removed, in_use=in_use, bytes_left=left)


def _size(path: Path) -> int:
    try:
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    except OSError:
        return 0  # it was removed while we looked


def _remove_free_locks(locks: Path) -> None:
    """Lock files that killed builds left. Each is removed by the one way that takes it from nobody: having it."""
    for path in locks.glob("*-*"):
        if (claim := Claim.try_for(path)) is not None:
            claim.release()
