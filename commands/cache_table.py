"""What `engine cache stats` shows."""

from datetime import UTC, datetime

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ..artifacts.describe import human_bytes
from ..artifacts.store.entry import KINDS
from ..artifacts.store.store import Store
from ..artifacts.store.upkeep import Held, held


def held_table(store: Store) -> Group:
    """Entries, bytes and last use of every kind, and of all."""
    entries = held(store)
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "entries", "size", "last use"):
        table.add_column(column, justify="left" if column in ("kind", "last use") else "right")
    for kind in KINDS:
        _add_row(table, kind, [entry for entry in entries if entry.kind == kind])
    _add_row(table, "all", entries)
    return Group(table, escape(f"\nin {store.directory}"))


def _add_row(table: Table, kind: str, entries: list[Held]) -> None:
    last = max((entry.last_use for entry in entries), default=0.0)
    shown = datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M UTC") if last else "-"
    table.add_row(kind, f"{len(entries):,}", human_bytes(sum(entry.bytes for entry in entries)), shown)
