"""`engine cache`: what is in a store, why builds miss it, and moving it. Imports nothing heavy."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from .artifacts import load_manifest
from .artifacts.describe import human_bytes
from .artifacts.store.entry import KINDS, Record
from .artifacts.store.explain import Comparison, explain
from .artifacts.store.store import Store, chosen_store
from .artifacts.store.transfer import export_entries, import_entries
from .artifacts.store.upkeep import Held, damaged, held, prune
from .errors import ArtifactError, BuildError, UsageError

Options = dict[str, Any]


def cache(action: str, options: Options) -> int:
    """Run one action with the flags that were given; returns its exit code."""
    return ACTIONS[action](options)


def _store(options: Options) -> Store:
    return Store(chosen_store(options.get("store")))


def _stats(options: Options) -> int:
    store = _store(options)
    entries = held(store)
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "entries", "size", "last use"):
        table.add_column(column, justify="left" if column in ("kind", "last use") else "right")
    for kind in KINDS:
        _add_stats(table, kind, [entry for entry in entries if entry.kind == kind])
    _add_stats(table, "all", entries)
    Console().print(Group(table, escape(f"\nin {store.directory}")), soft_wrap=True)
    return 0


def _add_stats(table: Table, kind: str, entries: list[Held]) -> None:
    last = max((entry.last_use for entry in entries), default=0.0)
    shown = datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M UTC") if last else "-"
    table.add_row(kind, f"{len(entries):,}", human_bytes(sum(entry.bytes for entry in entries)), shown)


def _explain(options: Options) -> int:
    first, second = options["first"], options["second"]
    comparisons = explain(load_manifest(first).ingredients, load_manifest(second).ingredients)
    if not comparisons:
        print("the same keys: one compiles nothing after the other")
    for comparison in comparisons:
        _print_comparison(comparison, first, second)
    return 0


def _print_comparison(comparison: Comparison, first: Path, second: Path) -> None:
    """One difference a line, so that it can be searched: `NAME: first -> second`."""
    mine, other = comparison.first, comparison.second
    if mine is None or other is None:
        only, owner = (mine, first) if mine is not None else (other, second)
        assert only is not None
        print(f"{only.kind} {only.key}: only in {owner}")
        return
    print(f"{mine.kind} {mine.key} in {first} -> {other.key} in {second}")
    for difference in comparison.differences:
        print(f"  {difference.ingredient}: {difference.first or '(none)'} -> {difference.second or '(none)'}")


def _export(options: Options) -> int:
    source, destination = _store(options), Store(options["output"])
    _print_copied("exported", export_entries(load_manifest(options["artifacts"]), source, destination), destination)
    return 0


def _import(options: Options) -> int:
    source, destination = Store(options["directory"]), _store(options)
    _print_copied("imported", import_entries(source, destination), destination)
    return 0


def _print_copied(verb: str, records: list[Record], destination: Store) -> None:
    print(f"{verb} {len(records)} entries, {human_bytes(sum(record.size for record in records))}, into {destination.directory}")


def _prune(options: Options) -> int:
    if not options.keys() & {"max_size", "unused_for"}:
        raise UsageError("nothing says what to remove", hint="give --max-size, --unused-for or both")
    store = _store(options)
    try:
        done = prune(store, max_bytes=options.get("max_size"), unused_for_days=options.get("unused_for"))
    except OSError as error:
        raise BuildError(f"the store {store.directory} cannot be pruned: {error.strerror}") from error
    removed = human_bytes(sum(entry.bytes for entry in done.removed))
    print(f"removed {len(done.removed)} entries, {removed}; {human_bytes(done.bytes_left)} left")
    if done.in_use:
        print(f"{len(done.in_use)} more are in use by running builds and stay")
    return 0


def _verify(options: Options) -> int:
    store = _store(options)
    removing = options.get("remove", False)
    count = len(held(store))
    try:
        found = damaged(store, remove_them=removing)
    except OSError as error:
        raise BuildError(f"the store {store.directory} cannot be repaired: {error.strerror}") from error
    for message in found.values():
        print(message)
    if found and not removing:
        raise ArtifactError(
            f"{len(found)} of {count} entries of {store.directory} are damaged",
            hint="builds treat them as absent; engine cache verify --remove removes them",
        )
    print(f"{store.directory}: {count} entries, " + (f"{len(found)} damaged and removed" if found else "all intact"))
    return 0


ACTIONS: dict[str, Callable[[Options], int]] = {
    "stats": _stats,
    "explain": _explain,
    "export": _export,
    "import": _import,
    "prune": _prune,
    "verify": _verify,
}
