"""`engine cache`: what is in a store, why builds miss it, and moving it. Imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..options.option import option, positional, required
from ..options.store import StoreOptions
from ..options.values import DIRECTORY, OUTPUT, byte_size, days
from .parser import Given, Parser, add_options

if TYPE_CHECKING:
    from ..artifacts.store.entry import Record
    from ..artifacts.store.explain import Comparison
    from ..artifacts.store.store import Store

DESCRIPTION = "The store keeps what builds compile, by what it was made from: a build compiles only what the store lacks."
EPILOG = """\
examples:
  engine cache stats
  engine cache explain artifact-here artifact-from-ci        why one build missed what the other had compiled
  engine cache export artifact -o warm                       all that building this artifact again needs
  engine cache import warm                                   on another machine; or: engine build ... --store warm
  engine cache prune --max-size 5GiB --unused-for 30"""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Two artifacts."""

    first: Path = positional("an artifact's directory", type=Path, metavar="FIRST")
    second: Path = positional("an artifact's directory", type=Path, metavar="SECOND")


@dataclass(frozen=True, kw_only=True)
class Export(StoreOptions):
    """What of, and where to."""

    artifacts: Path = positional("an artifact's directory", type=Path, metavar="ARTIFACT")
    output: Path = required("the new store, or one to add to", **OUTPUT)


@dataclass(frozen=True, kw_only=True)
class Import(StoreOptions):
    """Where from."""

    directory: Path = positional("a store, such as `engine cache export` wrote", **DIRECTORY)


@dataclass(frozen=True, kw_only=True)
class Prune(StoreOptions):
    """What goes; of the two conditions, either may be left out."""

    max_size: int | None = option(
        None, "remove until the rest fits (5GiB); a smaller store compiles more often", type=byte_size, metavar="SIZE"
    )
    unused_for: float | None = option(None, "remove what no build used for so many days", type=days, metavar="DAYS")

    def __post_init__(self) -> None:
        if self.max_size is None and self.unused_for is None:
            raise UsageError("nothing says what to remove", hint="give --max-size, --unused-for or both")


@dataclass(frozen=True, kw_only=True)
class Verify(StoreOptions):
    """Whether what is damaged goes."""

    remove: bool = option(False, "remove what is damaged; else it is listed, and the exit code is 6")


def add_arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, action in ACTIONS.items():
        add_options(actions.add_parser(name, help=action.help, description=action.description), action.options)


def run(given: Given) -> int:
    """Run one action. Returns the exit code."""
    action = ACTIONS[given.pop("action")]
    action.run(action.options(**given))
    return 0


def _stats(options: StoreOptions) -> None:
    from rich.console import Console

    from .cache_table import held_table

    store = _opened(options)
    Console().print(held_table(store), soft_wrap=True)


def _explain(options: Explain) -> None:
    from ..artifacts import load_manifest
    from ..artifacts.store.explain import explain

    comparisons = explain(load_manifest(options.first).ingredients, load_manifest(options.second).ingredients)
    if not comparisons:
        print("the same keys: one compiles nothing after the other")
    for comparison in comparisons:
        _print_comparison(comparison, options.first, options.second)


def _print_comparison(comparison: "Comparison", first: Path, second: Path) -> None:
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


def _export(options: Export) -> None:
    from ..artifacts import load_manifest
    from ..artifacts.store.store import Store
    from ..artifacts.store.transfer import export_entries

    source, destination = _opened(options), Store(options.output)
    _print_copied("exported", export_entries(load_manifest(options.artifacts), source, destination), destination)


def _import(options: Import) -> None:
    from ..artifacts.store.store import Store
    from ..artifacts.store.transfer import import_entries

    source, destination = Store(options.directory), _opened(options)
    _print_copied("imported", import_entries(source, destination), destination)


def _print_copied(verb: str, records: list["Record"], destination: "Store") -> None:
    from ..artifacts.describe import human_bytes

    print(f"{verb} {len(records)} entries, {human_bytes(sum(record.size for record in records))}, into {destination.directory}")


def _prune(options: Prune) -> None:
    from ..artifacts.describe import human_bytes
    from ..artifacts.store.upkeep import prune
    from ..errors import BuildError

    store = _opened(options)
    try:
        done = prune(store, max_bytes=options.max_size, unused_for_days=options.unused_for)
    except OSError as error:
        raise BuildError(f"the store {store.directory} cannot be pruned: {error.strerror}", hint=_WRITABLE) from error
    removed = human_bytes(sum(entry.bytes for entry in done.removed))
    print(f"removed {len(done.removed)} entries, {removed}; {human_bytes(done.bytes_left)} left")
    if done.in_use:
        print(f"{len(done.in_use)} more are in use by running builds and stay")


def _verify(options: Verify) -> None:
    from ..artifacts.store.upkeep import damaged, held
    from ..errors import ArtifactError, BuildError

    store = _opened(options)
    count = len(held(store))
    try:
        found = damaged(store, remove_them=options.remove)
    except OSError as error:
        raise BuildError(f"the store {store.directory} cannot be repaired: {error.strerror}", hint=_WRITABLE) from error
    for message in found.values():
        print(message)
    if found and not options.remove:
        raise ArtifactError(
            f"{len(found)} of {count} entries of {store.directory} are damaged",
            hint="builds treat them as absent; engine cache verify --remove removes them",
        )
    print(f"{store.directory}: {count} entries, " + (f"{len(found)} damaged and removed" if found else "all intact"))


_WRITABLE = "a store is repaired and pruned by a user who may write to it"


def _opened(options: StoreOptions) -> "Store":
    from ..artifacts.store.store import Store, chosen_store

    return Store(chosen_store(options.store))


@dataclass(frozen=True, kw_only=True)
class _Action:
    help: str
    description: str
    options: type
    run: Callable[[Any], None]


ACTIONS = {
    "stats": _Action(
        help="entries, bytes and last use by kind",
        description="Show what the store holds: entries, bytes and last use by kind, and where it is.",
        options=StoreOptions,
        run=_stats,
    ),
    "explain": _Action(
        help="why two builds have other keys",
        description="Show which ingredients of their keys differ between two artifacts. Needs no store.",
        options=Explain,
        run=_explain,
    ),
    "export": _Action(
        help="what one artifact needs, as a store",
        description="Copy what an artifact was built from into a store of its own: a build from it compiles nothing.",
        options=Export,
        run=_export,
    ),
    "import": _Action(
        help="all entries of another store",
        description="Copy every entry of another store, once all of them are verified. It is code: import from whom you trust.",
        options=Import,
        run=_import,
    ),
    "prune": _Action(
        help="remove what was used longest ago",
        description="Remove entries by last use. What running builds read stays, and so does all that is no entry.",
        options=Prune,
        run=_prune,
    ),
    "verify": _Action(
        help="check every entry",
        description="Check every entry against its digests. Builds do so too, and treat what is damaged as absent.",
        options=Verify,
        run=_verify,
    ),
}
