"""Stages 2 to 4: a model's configuration to the calls of a step and what is to be compiled for them.

The result is data, and depends on nothing but the configuration, the formats of the weights, the
kind of target and our own code: so the store keeps it, and a warm build traces nothing.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from torch import fx

from ..artifacts import Call, PassReport
from ..artifacts.store import Store, key_of
from ..models.checkpoint import Checkpoint
from . import debug_dump
from .memory_plan import ActivationBytes, plan_activations
from .partition import Partition, partition
from .progress import Reporter
from .target_kind import BLOCK_SIZE, TargetKind
from .weights_plan import PackedWeight, plan_weights

SUFFIX = ".program.json"
_PACKAGE = Path(__file__).parent.parent
_SOURCES = ("compiler", "kernels", "models", "passes")


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """What a step consists of. graph: the fused graph, for whoever wants to interpret it."""

    parts: Partition
    weights: list[PackedWeight]
    activations: ActivationBytes
    reports: list[PassReport]
    graph: Callable[[], fx.GraphModule]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a program is made from, and for. formats: storage format of every parameter in the artifact, by name."""

    checkpoint: Checkpoint
    formats: Mapping[str, str]
    kv_dtype: str
    kind: TargetKind
    disable_pass: Sequence[str]

    def key(self) -> str:
        """Its identity: every field that the result depends on, and every source that makes it."""
        checkpoint, kind = self.checkpoint, self.kind
        stored = {name: parameter.format for name, parameter in checkpoint.parameters.items()}
        facts = {
            "config": dataclasses.asdict(checkpoint.config),
            "stored": stored,
            "formats": dict(self.formats),
            "kv_dtype": self.kv_dtype,
            "block_size": BLOCK_SIZE,
            "layout": kind.layout,
            "cuts_are_segments": kind.cuts_are_segments,
            "disable_pass": sorted(self.disable_pass),
        }
        return key_of("program", json.dumps(facts, sort_keys=True), *kind.toolchain.ingredients(), *_sources())


def step_program(wanted: Wanted, store: Store, dump: Path | None, reporter: Reporter) -> StepProgram:
    """The program, found in the store or made and added to it.

    dump: a directory for graphs and bytecode; with one, it is made anew. Raises UsageError for passes that
    there are not, BuildError for a model that does not trace or cannot be cut.
    """
    key = wanted.key()
    if dump is None and (file := store.find(key, SUFFIX)) is not None:
        with reporter.stage("trace") as stage:
            found = _decode(file.read_bytes(), lambda: fused_graph(wanted))
            stage.note(f"found in the store: {_counts(found.parts)}")
            return found
    graph, reports = _fused(wanted, dump, reporter)
    with reporter.stage("partition") as stage:
        made = StepProgram(
            parts=wanted.kind.complete(partition(graph.graph, cuts_are_segments=wanted.kind.cuts_are_segments), wanted.checkpoint.config),
            weights=plan_weights(graph.graph, wanted.formats, wanted.checkpoint),
            activations=plan_activations(graph.graph),
            reports=reports,
            graph=lambda: graph,
        )
        with tempfile.TemporaryDirectory(prefix="engine-program-") as scratch:
            path = Path(scratch) / "program"
            path.write_bytes(_encode(made))
            store.add(key, SUFFIX, path)
        stage.note(_counts(made.parts))
    return made


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
        module = trace(wanted.checkpoint.config, block_size=BLOCK_SIZE, kv_dtype=wanted.kv_dtype)
    with reporter.stage("fuse") as stage:
        debug_dump.write_graph(dump, "00-traced", module.graph)
        passes = pipeline.pipeline(wanted.formats, wanted.disable_pass, wanted.kind.layout)
        stage.total(len(passes))

        def after_each(result: pipeline.PassResult) -> None:
            debug_dump.write_graph(dump, f"after-{result.name}", module.graph)
            stage.advance(note=f"{result.name}: {result.matches}")

        results = pipeline.run(module.graph, passes, after_each)
    return module, [PassReport(**dataclasses.asdict(result)) for result in results]


def _encode(program: StepProgram) -> bytes:
    parts = program.parts
    content: dict[str, Any] = {
        "calls": parts.calls,
        "result": parts.result,
        "forms": list(parts.forms),
        "weights": [dataclasses.asdict(weight) for weight in program.weights],
        "activations": dataclasses.asdict(program.activations),
        "reports": program.reports,
    }
    return msgspec.json.encode(content)


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    calls: list[Call]
    result: str
    forms: list[str]
    weights: list[PackedWeight]
    activations: ActivationBytes
    reports: list[PassReport]


def _decode(content: bytes, graph: Callable[[], fx.GraphModule]) -> StepProgram:
    stored = msgspec.json.decode(content, type=_Stored)
    parts = Partition(calls=stored.calls, forms={text: json.loads(text) for text in stored.forms}, result=stored.result)
    return StepProgram(parts=parts, weights=stored.weights, activations=stored.activations, reports=stored.reports, graph=graph)


@cache
def _sources() -> tuple[str, ...]:
    paths = sorted(path for name in _SOURCES for path in (_PACKAGE / name).rglob("*.py"))
    return tuple(f"{path.relative_to(_PACKAGE)}\0{path.read_text()}" for path in paths)
