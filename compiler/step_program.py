"""Stages 2 to 4: a model's configuration to the calls of a step and what is to be compiled for them.

The result is data, and depends on nothing but the configuration, the formats of the weights, the
kind of target and our own code: so the store keeps it, and a warm build traces nothing.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from torch import fx

from ..artifacts import CacheGroup, Call, InputInfo, PassReport, RoutesInfo
from ..artifacts.manifest import LOGITS, POOLED
from ..artifacts.step_inputs import step_inputs
from ..artifacts.store.claim import Claim
from ..artifacts.store.keys import Identity, identity
from ..artifacts.store.store import Store
from ..models.checkpoint import Checkpoint
from ..models.expected_fusions import expected_fusions
from ..models.spec import ModelSpec
from . import debug_dump
from .caches import manifest_groups
from .memory_plan import plan_activations
from .partition import Partition, partition
from .progress import Reporter
from .routes import routes_info
from .sources import sources
from .target_kind import BLOCK_SIZE, TargetKind
from .weights_plan import PackedWeight, plan_weights

FILE = "program.json"
SOURCES = (
    "artifacts/graph.py",
    "artifacts/manifest.py",
    "artifacts/routes.py",
    "artifacts/step_inputs.py",
    "compiler/caches.py",
    "compiler/memory_plan.py",
    "compiler/nvidia",
    "compiler/partition.py",
    "compiler/routes.py",
    "compiler/segment_graph.py",
    "compiler/step_program.py",
    "compiler/target_kind.py",
    "compiler/trace.py",
    "compiler/weights_plan.py",
    "errors.py",
    "kernels",
    "models",
    "passes",
)
"""Every file of ours that makes programs; test_build_keys.py compares them with the imports."""


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """What a step consists of. activations: as in `MemoryPlan`. unfused: as in `Manifest`. graph: the fused graph, to be interpreted."""

    parts: Partition
    weights: list[PackedWeight]
    activations: dict[str, int]
    reports: list[PassReport]
    unfused: dict[str, int] | None
    graph: Callable[[], fx.GraphModule]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a program is made from, and for.

    formats, stored: how the artifact and the checkpoint hold every parameter, by name. capture_routes: whether what routers choose is
    among the results.
    """

    spec: ModelSpec
    formats: Mapping[str, str]
    stored: Mapping[str, str]
    kv_dtype: str
    kind: TargetKind
    disable_pass: tuple[str, ...]
    capture_routes: bool
    block_size: int
    sources: Mapping[str, str]

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        formats: Mapping[str, str],
        *,
        kv_dtype: str,
        kind: TargetKind,
        disable_pass: Sequence[str],
        capture_routes: bool = False,
    ) -> "Wanted":
        return cls(
            spec=checkpoint.spec,
            formats=formats,
            stored={name: parameter.format for name, parameter in checkpoint.parameters.items()},
            kv_dtype=kv_dtype,
            kind=kind,
            disable_pass=tuple(sorted(disable_pass)),
            capture_routes=capture_routes,
            block_size=BLOCK_SIZE,
            sources=sources(*SOURCES),
        )

    @property
    def groups(self) -> list[CacheGroup]:
        """The caches that a step reads and writes."""
        return manifest_groups(self.spec, block_size=self.block_size, kv_dtype=self.kv_dtype)

    @property
    def routes(self) -> RoutesInfo | None:
        """The routers whose choices are results, if they are."""
        return routes_info(self.spec) if self.capture_routes else None

    @property
    def results(self) -> list[str]:
        """Names of a step's results."""
        return [LOGITS if self.spec.pooling is None else POOLED, *(self.routes.results if self.routes is not None else ())]

    def identity(self) -> Identity:
        """Its identity in the store: every field that the result depends on, and every source that makes it."""
        return identity("program", self)


def step_program(wanted: Wanted, store: Store, dump: Path | None, reporter: Reporter) -> StepProgram:
    """The program, found in the store or made and added to it; where another build is making it, that is waited for.

    dump: a directory for graphs and bytecode; with one, it is made anew. Raises UsageError for passes that
    there are not, BuildError for a model that does not trace or cannot be cut.
    """
    if dump is None and (found := find_program(wanted, store, reporter)) is not None:
        return found
    with _claim(wanted, store, reporter):
        if dump is None and (found := find_program(wanted, store, reporter)) is not None:
            return found
        made = make_program(wanted, dump, reporter)
        store.add(wanted.identity(), {FILE: _encode(made)})
        return made


def find_program(wanted: Wanted, store: Store, reporter: Reporter) -> StepProgram | None:
    """The program, if the store has it."""
    entry = store.find(wanted.identity())
    if entry is None:
        return None
    with reporter.stage("trace") as stage:
        found = _decode(entry.contents[FILE], lambda: fused_graph(wanted))
        stage.note(f"found in the store: {_counts(found.parts)}")
        return found


def make_program(wanted: Wanted, dump: Path | None, reporter: Reporter) -> StepProgram:
    """Trace, fuse and partition. dump and errors as in `step_program`."""
    from ..passes.unfused import unfused

    graph, reports = _fused(wanted, dump, reporter)
    inputs = step_inputs((group.name for group in wanted.groups), token_types=wanted.spec.embed.types > 1)
    with reporter.stage("partition") as stage:
        parts = partition(graph.graph, inputs, results=wanted.results, cuts_are_segments=wanted.kind.cuts_are_segments)
        made = StepProgram(
            parts=wanted.kind.complete(parts, wanted.spec),
            weights=plan_weights(graph.graph, wanted.stored),
            activations=plan_activations(graph.graph, inputs),
            reports=reports,
            unfused=unfused(graph.graph, columns=wanted.spec.hidden_size) if wanted.kind.one_thread else None,
            graph=lambda: graph,
        )
        stage.note(_counts(made.parts))
    return made


def _claim(wanted: Wanted, store: Store, reporter: Reporter) -> Claim:
    if (claim := store.claim(wanted.identity())) is not None:
        return claim
    with reporter.stage("wait") as stage:
        stage.note("another build is tracing the same model")
        return store.wait_for_claim(wanted.identity())


def fused_graph(wanted: Wanted) -> fx.GraphModule:
    """The graph alone, for whoever wants to interpret it."""
    return _fused(wanted, None, Reporter(quiet=True))[0]


def _counts(parts: Partition) -> str:
    return f"{len(parts.forms)} distinct segments, {len(parts.calls)} calls"


def _fused(wanted: Wanted, dump: Path | None, reporter: Reporter) -> tuple[fx.GraphModule, list[PassReport]]:
    """Trace the model and run the passes on its graph."""
    from ..passes import pipeline  # and what is under it: importing Dynamo takes longer than a warm build's work
    from .trace import trace

    with reporter.stage("trace"), debug_dump.decompiled_bytecode(dump):
        module = trace(wanted.spec, block_size=wanted.block_size, kv_dtype=wanted.kv_dtype)
    with reporter.stage("fuse") as stage:
        debug_dump.write_graph(dump, "00-traced", module.graph)
        captured = 0 if wanted.routes is None else len(wanted.routes.layers)
        passes = pipeline.pipeline(wanted.formats, wanted.disable_pass, wanted.kind.layout, captured_layers=captured)
        stage.total(len(passes))

        def after_each(result: pipeline.PassResult) -> None:
            debug_dump.write_graph(dump, f"after-{result.name}", module.graph)
            stage.advance(note=f"{result.name}: {result.matches}")

        # One pass left out may leave others without a match.
        expected = frozenset() if wanted.disable_pass else expected_fusions(wanted.spec, one_thread=wanted.kind.one_thread)
        results = pipeline.run(module.graph, passes, after_each, expected=expected)
    return module, [PassReport(**dataclasses.asdict(result)) for result in results]


def _encode(program: StepProgram) -> bytes:
    parts = program.parts
    content: dict[str, Any] = {
        "inputs": parts.inputs,
        "calls": parts.calls,
        "results": parts.results,
        "forms": list(parts.forms),
        "weights": [dataclasses.asdict(weight) for weight in program.weights],
        "activations": program.activations,
        "reports": program.reports,
        "unfused": program.unfused,
    }
    return msgspec.json.encode(content)


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: list[InputInfo]
    calls: list[Call]
    results: dict[str, str]
    forms: list[str]
    weights: list[PackedWeight]
    activations: dict[str, int]
    reports: list[PassReport]
    unfused: dict[str, int] | None


def _decode(content: bytes, graph: Callable[[], fx.GraphModule]) -> StepProgram:
    stored = msgspec.json.decode(content, type=_Stored)
    forms = {text: json.loads(text) for text in stored.forms}
    parts = Partition(inputs=stored.inputs, calls=stored.calls, forms=forms, results=stored.results)
    return StepProgram(
        parts=parts,
        weights=stored.weights,
        activations=stored.activations,
        reports=stored.reports,
        unfused=stored.unfused,
        graph=graph,
    )
