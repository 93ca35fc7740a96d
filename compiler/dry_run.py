"""`engine build --dry-run`: what a build would compile, reuse and pack. Writes nothing, compiles nothing."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ..artifacts import parse_target, seal, this_machine_flags
from ..artifacts.describe import human_bytes
from ..artifacts.store.store import Store, chosen_store
from ..artifacts.tuning import load_tuned
from . import environment
from .fewer_layers import FewerLayers, fewer_layers
from .forecast import Expected, expected_code, expected_program
from .options import BuildOptions
from .pack import packed_bytes
from .progress import Reporter
from .stages import resolve
from .step_program import Wanted, find_program, make_program
from .target_kind import kind_of


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a build would do.

    traced_layers: how many of the model's `layers` were traced, in `traced_seconds`; none if the store has the program.
    """

    target: str
    store: Store
    expected: Sequence[Expected]
    layers: int
    traced_layers: int
    traced_seconds: float
    tensors: int
    packed_bytes: int

    def table(self) -> Group:
        """For rich to print."""
        table = Table(box=None, pad_edge=False)
        for column in ("", "kind", "what", "key", "size"):
            table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
        for item in self.expected:
            there = item.bytes is not None
            make = "trace" if item.identity.kind == "program" else "compile"
            size = human_bytes(item.bytes) if item.bytes is not None else ""
            table.add_row("reuse" if there else f"[bold]{make}", item.identity.kind, item.what, item.identity.key[:16], size)
        table.add_row("pack" if self.tensors else "leave out", "weights", f"{self.tensors} tensors", "", human_bytes(self.packed_bytes))
        cold = [item for item in self.expected if item.bytes is None]
        reasons = [escape(f"\n{item.identity.kind} {item.identity.key}: " + "\n".join(item.explained())) for item in cold]
        summary = f"\nfor {self.target}, with the store {self.store.directory}: {len(cold)} of {len(self.expected)} to be made"
        return Group(table, *reasons, escape(summary + self._traced()))

    def _traced(self) -> str:
        if not self.traced_layers:
            return ""
        others = ", the others being like them," if self.traced_layers < self.layers else ""
        return f"; traced {self.traced_layers} of {self.layers} layers{others} in {self.traced_seconds:.1f} s, and kept nothing of it"


def dry_run(options: BuildOptions, reporter: Reporter) -> DryRun:
    """Find out what `build` would do with these options. Errors as there, of which an `output` that must not be replaced is the first."""
    seal.check_replaceable(options.output, force=options.force)
    environment.check_tracing()
    target = parse_target(options.target, machine_flags=this_machine_flags())
    kind = kind_of(target, load_tuned(options.tuned) if options.tuned else None, tunable=options.tunable)
    store = Store(chosen_store(options.store))
    with reporter.running():
        with reporter.stage("resolve") as stage:
            checkpoint, formats = resolve(options, kind, stage)
            options = replace(options, kv_dtype=kind.kv_dtype(options.kv_dtype, checkpoint, formats))
        wanted = Wanted.of(
            checkpoint,
            formats,
            kv_dtype=options.kv_dtype,
            kind=kind,
            disable_pass=options.disable_pass,
            capture_routes=options.capture_routes,
        )
        start = time.perf_counter()
        program, model = find_program(wanted, store, reporter), FewerLayers.none_left_out(wanted)
        traced = program is None
        if program is None:
            model = fewer_layers(wanted)
            program = make_program(model.wanted, None, reporter)
        seconds = time.perf_counter() - start
    weights = program.weights if options.weights == "all" else []
    return DryRun(
        target=str(target),
        store=store,
        expected=[expected_program(wanted, store), *expected_code(kind.backend, program.parts, store, whole=not traced)],
        layers=len(wanted.spec.layers),
        traced_layers=len(model.stands_for) if traced else 0,
        traced_seconds=seconds,
        tensors=sum(model.times(weight) for weight in weights),
        packed_bytes=sum(model.times(weight) * packed_bytes(weight) for weight in weights),
    )
