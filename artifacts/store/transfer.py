"""Entries from one store into another: what an artifact needs, or all of it."""

from pathlib import Path

from ...errors import ArtifactError, BuildError
from ..manifest import Manifest
from .entry import Entry, Record, entry_places, read_entry
from .ingredients import identities
from .store import Store


def export_entries(manifest: Manifest, source: Store, destination: Store) -> list[Record]:
    """Copy what the artifact was built from, so that a build from `destination` alone compiles nothing: where weights were fitted, the
    quantizers of `source` as well, which no artifact names. Returns the records.

    Raises ArtifactError if the source lacks something, BuildError if the destination cannot be written.
    """
    found = {f"{wanted.kind} {wanted.key}": source.find(wanted) for wanted in identities(manifest.ingredients)}
    missing = [name for name, entry in found.items() if entry is None]
    if missing:
        raise ArtifactError(
            f"{source.directory} lacks {len(missing)} of the {len(found)} entries of this artifact: {', '.join(missing)}",
            hint="name the store that it was built with (--store DIR), or build it again",
        )
    quantizers = _quantizers(source) if manifest.model.calibration else []
    entries = [entry for entry in (*found.values(), *quantizers) if entry is not None]
    for entry in entries:
        _write(entry, destination)
    return [entry.record for entry in entries]


def import_entries(source: Store, destination: Store) -> list[Record]:
    """Copy every entry that is not there yet, once all of them are verified. Returns the records of those that were copied.

    Raises ArtifactError if any is damaged, and then imports none; BuildError if the destination cannot be written.
    """
    paths = list(entry_places(source.directory))
    if not paths:
        raise ArtifactError(f"{source.directory} holds no entries", hint="give a store, or what `engine cache export` wrote")
    for path in paths:
        _verified(path)
    copied = []
    for path in paths:
        entry = _verified(path)
        if destination.find(entry.record.identity) is None:
            _write(entry, destination)
            copied.append(entry.record)
    return copied


def _quantizers(store: Store) -> list[Entry | None]:
    return [store.find(record.identity) for record in store.records() if record.kind == "quantizer"]


def _verified(path: Path) -> Entry:
    try:
        return read_entry(path)
    except ArtifactError as error:
        raise ArtifactError(error.message, hint="copy the store again; `engine cache verify` lists all that is damaged") from None


def _write(entry: Entry, destination: Store) -> None:
    try:
        destination.write(entry.record.identity, entry.contents)
    except OSError as error:
        raise BuildError(
            f"the store {destination.directory} cannot be written: {error.strerror or error}", hint="free some space, or choose another"
        ) from error
