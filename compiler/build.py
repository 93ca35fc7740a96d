"""`engine build`: a checkpoint to an artifact, in eight stages.

resolve -> trace -> fuse -> partition -> lower -> pack -> probe -> seal
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import msgspec

from ..artifacts import (
    AnyTarget,
    KVCacheSpec,
    Manifest,
    MemoryPlan,
    ModelInfo,
    Probe,
    SegmentInfo,
    Target,
    check_machine,
    parse_target,
    seal,
    this_machine_flags,
)
from ..artifacts.launch_plan import load_plan
from ..artifacts.manifest import SCHEMA_VERSION
from ..artifacts.store.ingredients import recorded
from ..artifacts.store.keys import Identity
from ..artifacts.store.store import Store, chosen_store
from ..artifacts.tuning import Tuned, load_tuned
from ..errors import MismatchError, UsageError
from ..models.checkpoint import Checkpoint, open_checkpoint
from . import environment, probe
from .backend import Backend
from .forecast import check_warm
from .interpret import GraphInterpreter
from .lower import KERNELS, SEGMENTS, Lowered, Lowering
from .lower import wanted as everything_of
from .nvidia.write_graphs import Graphs
from .pack import Packed, leave_out, pack, packed_bytes
from .partition import Partition
from .progress import BuildSummary, Reporter, Stage
from .step_program import StepProgram, Wanted, step_program
from .target_kind import BLOCK_SIZE, TargetKind, kind_of
from .weights_plan import PackedWeight, choose_formats

QUANTIZE = ("none", "int8", "int4", "fp8", "fp8-block")
WEIGHTS = ("all", "none")
KV_DTYPES = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build. model: a Hugging Face directory, a GGUF file or a hub id. output: the artifact's place.

    quantize: none | int8 | int4, on NVIDIA also fp8 | fp8-block. kv_dtype: float32 | bfloat16 | int8, or auto: bfloat16 but for
    weights in float32, whose keys and values are float32 too. weights: all, or none to leave them out
    (then the model may be a directory with a config.json alone). max_context: at most what the
    model was made for (its default). disable_pass: names of graph rewrites to leave out. jobs:
    compiler processes (default: one per core). store: the cache of what is compiled (default:
    $ENGINE_STORE, else one per user). require_warm: fail where something would have to be compiled.
    debug_dump: a directory for graphs and generated code. force: replace an artifact at `output`.
    """

    model: str
    output: Path
    target: str = "cpu"
    quantize: str = "none"
    kv_dtype: str = "auto"
    weights: str = "all"
    max_context: int | None = None
    name: str | None = None
    disable_pass: Sequence[str] = ()
    jobs: int | None = None
    store: Path | None = None
    require_warm: bool = False
    debug_dump: Path | None = None
    force: bool = False
    tuned: Path | None = None
    tunable: bool = False

    def __post_init__(self) -> None:
        for name, known in (("quantize", QUANTIZE), ("kv_dtype", KV_DTYPES), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}", hint=f"it is one of {', '.join(known)}")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}, but must be at least 1")
        if self.require_warm and self.debug_dump is not None:
            raise UsageError("a debug dump is written while compiling, which require_warm forbids", hint="give one of the two")


def build(options: BuildOptions, reporter: Reporter | None = None) -> BuildSummary:
    """Build an artifact at `options.output`.

    Raises UsageError for options that cannot work, CheckpointError and UnsupportedModelError
    for the model, BuildError for everything that fails on the way; nothing is left at `output`.
    """
    environment.check_tracing()
    reporter = reporter or Reporter(quiet=True)
    target = parse_target(options.target, machine_flags=this_machine_flags())
    tuned = load_tuned(options.tuned) if options.tuned else None
    kind = kind_of(target, tuned, tunable=options.tunable)
    store = Store(chosen_store(options.store))
    jobs = options.jobs or len(os.sched_getaffinity(0))
    with (
        seal.building(options.output, force=options.force) as scratch,
        Lowering(backend=kind.backend, store=store, jobs=jobs, artifact=scratch, debug_dump=options.debug_dump) as lowering,
        reporter.running(),
    ):
        with reporter.stage("resolve") as stage:
            checkpoint, formats = resolve(options, kind, stage)
            options = replace(options, kv_dtype=kind.kv_dtype(options.kv_dtype, checkpoint, formats))
        wanted = Wanted.of(checkpoint, formats, kv_dtype=options.kv_dtype, kind=kind, disable_pass=options.disable_pass)
        if options.require_warm:
            check_warm(wanted, store)
        program = step_program(wanted, store, options.debug_dump, reporter)
        with reporter.stage("lower") as stage:
            code = lower(lowering, kind.backend, program.parts, stage)
            graphs = kind.write_graphs(scratch, program.parts, code.segments, options.max_context or checkpoint.config.max_context)
            reporter.summary.tuning = _tuning_summary(tuned, code.segments.values())
        with reporter.stage("pack") as stage:
            everything = options.weights == "all"
            weights = pack_weights(program.weights, checkpoint, scratch, stage) if everything else leave_out(program.weights)
            write_tokenizer(checkpoint, scratch, required=everything)
        with reporter.stage("probe") as stage:
            manifest = _manifest(options, target, kind, checkpoint, wanted.identity(), program, code, graphs, weights)
            manifest = msgspec.structs.replace(manifest, tuned_on=tuned.device if tuned else "")
            manifest = finish_with_probe(manifest, scratch, weights, lambda: reference(program, checkpoint, kind), stage)
        with reporter.stage("seal"):
            seal.write_manifest(scratch, manifest)
            seal.seal(scratch, options.output)
    summary = reporter.summary
    summary.store_refusal = (
        store.refusal and f"{store.directory} could not keep all that was compiled ({store.refusal}); the artifact has it"
    )
    compiled = sum(not segment.reused for segment in code.segments.values())
    return summarize(reporter, options.output, manifest, compiled=compiled)


def can_run(manifest: Manifest) -> bool:
    """Whether this machine runs the code. Of NVIDIA's it is never asked: a build is the same with a GPU and without."""
    try:
        check_machine(manifest)
    except MismatchError:
        return False
    return isinstance(parse_target(manifest.target), Target)


def resolve(options: BuildOptions, kind: TargetKind, stage: Stage) -> tuple[Checkpoint, dict[str, str]]:
    """Open and check the checkpoint; decide the storage format of every parameter."""
    checkpoint = open_checkpoint(options.model, weights=options.weights == "all")
    trained = checkpoint.config.max_context
    if options.max_context is not None and not 1 <= options.max_context <= trained:
        raise UsageError(
            f"--max-context {options.max_context} is outside 1..{trained}", hint=f"{checkpoint.name} was made for {trained} tokens"
        )
    stage.note(f"{checkpoint.name}: {checkpoint.config.architecture}, {len(checkpoint.config.layers)} layers")
    return checkpoint, choose_formats(checkpoint, options.quantize, kind.layout)


@dataclass(frozen=True, kw_only=True)
class Code:
    """What was compiled or found: every segment by its canonical text, and the library if the target has one."""

    library: Lowered | None
    segments: dict[str, Lowered]

    @property
    def all(self) -> list[Lowered]:
        return [*([self.library] if self.library is not None else []), *self.segments.values()]


def lower(lowering: Lowering, backend: Backend, parts: Partition, stage: Stage) -> Code:
    """Compile or find every segment, and the library if the target has one; all of it is then in the artifact."""
    wanted = everything_of(backend, parts.forms)
    stage.total(len(wanted))
    done = lowering.run(
        wanted,
        on_done=lambda lowered: stage.advance(note=lowered.key[:12] + (" (reused)" if lowered.reused else "")),
        on_wait=lambda: stage.note("waiting for another build, which is compiling the same"),
    )
    return Code(library=done.get(None), segments={form: done[form] for form in parts.forms})


def pack_weights(plan: list[PackedWeight], checkpoint: Checkpoint, scratch: Path, stage: Stage) -> Packed:
    """Write the weights."""
    stage.total(sum(packed_bytes(weight) for weight in plan) >> 20)
    written = 0

    def on_weight(name: str, count: int) -> None:
        nonlocal written
        stage.advance(((written + count) >> 20) - (written >> 20), note=name)
        written += count

    packed = pack(plan, checkpoint, scratch, on_weight)
    stage.note("MiB")
    return packed


def write_tokenizer(checkpoint: Checkpoint, scratch: Path, *, required: bool) -> None:
    """Write the tokenizer. Raises CheckpointError for one that is required and missing or damaged."""
    directory = scratch / "tokenizer"
    directory.mkdir()
    if required or checkpoint.has_tokenizer:
        checkpoint.write_tokenizer(directory)


def reference(program: StepProgram, checkpoint: Checkpoint, kind: TargetKind) -> GraphInterpreter:
    """What computes the step in plain PyTorch."""
    return GraphInterpreter(program.graph(), program.weights, checkpoint, kind.references())


def finish_with_probe(
    manifest: Manifest, scratch: Path, weights: Packed, interpreter: Callable[[], GraphInterpreter], stage: Stage
) -> Manifest:
    """The manifest with digests of all files and with golden values; without weights there are none."""
    others = {name: info for name, info in seal.file_infos(scratch).items() if name not in weights.files}
    manifest = msgspec.structs.replace(manifest, files=dict(sorted((others | weights.files).items())))
    if not manifest.has_weights:
        stage.note("none: no weights")
        return manifest
    prompts = probe.probe_prompts(manifest.model.vocab_size, manifest.model.max_context)
    if can_run(manifest):
        seal.write_manifest(scratch, manifest)
        golden = probe.record_on_target(scratch, prompts)
    else:
        golden = probe.record_from_reference(interpreter(), manifest.kv_cache, prompts)
    stage.note(f"recorded on the {golden.recorded_on}")
    return msgspec.structs.replace(manifest, probe=golden)


def _manifest(
    options: BuildOptions,
    target: AnyTarget,
    kind: TargetKind,
    checkpoint: Checkpoint,
    program_identity: Identity,
    program: StepProgram,
    code: Code,
    graphs: Graphs,
    weights: Packed,
) -> Manifest:
    """The manifest so far: no digests, no probe."""
    parts, segments = program.parts, code.segments
    config = checkpoint.config
    calls = [call.target for call in parts.calls]
    return Manifest(
        schema=SCHEMA_VERSION,
        created=int(time.time()),
        target=str(target),
        toolchain=kind.toolchain.recorded(),
        ingredients=recorded([program_identity, *(lowered.identity for lowered in code.all)]),
        model=ModelInfo(
            name=options.name or checkpoint.name,
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            max_context=options.max_context or config.max_context,
            hidden_size=config.hidden_size,
            num_layers=len(config.layers),
            parameters=_count_parameters(checkpoint),
            quantize=options.quantize,
            source_format="+".join(sorted({info.format for info in checkpoint.parameters.values()})),
        ),
        kv_cache=KVCacheSpec(
            num_layers=len(config.layers),
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=BLOCK_SIZE,
            dtype=options.kv_dtype,  # type: ignore[arg-type]
        ),
        kernel_library=_library_name(code.library) if code.library is not None else "",
        kernels=graphs.kernels,
        graphs=graphs.graphs,
        segments=[
            SegmentInfo(key=segment.key, file=_segment_name(segment), calls=calls.count(form), nodes=len(parts.forms[form]["nodes"]))
            for form, segment in segments.items()
        ],
        program=parts.program({form: segment.key for form, segment in segments.items()}),
        has_weights=options.weights == "all",
        weights=weights.index,
        memory=MemoryPlan(
            weight_bytes=sum(info.bytes for info in weights.files.values()) or sum(packed_bytes(weight) for weight in program.weights),
            bytes_per_token=program.activations.per_token,
            bytes_per_sequence=program.activations.per_sequence,
        ),
        fusion=program.reports,
        probe=Probe(recorded_on="reference", prompts=[]),
        files={},
    )


def _count_parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(info.shape) for info in checkpoint.parameters.values())


def _library_name(library: Lowered) -> str:
    return f"{KERNELS}/{library.file.name}"


def _segment_name(segment: Lowered) -> str:
    return f"{SEGMENTS}/{segment.file.name}"


def summarize(reporter: Reporter, output: Path, manifest: Manifest, *, compiled: int) -> BuildSummary:
    """Print and return what was done. compiled: how many of the artifact's segments."""
    summary = reporter.summary
    summary.output, summary.target = str(output), manifest.target
    summary.segments_compiled, summary.segments_reused = compiled, len(manifest.segments) - compiled
    summary.segment_calls = sum(segment.calls for segment in manifest.segments)
    summary.kernels = _kernels_summary(manifest)
    summary.fusions = {report.name: report.matches for report in manifest.fusion}
    summary.code_bytes = sum(manifest.files[name].bytes for name in manifest.code_files)
    summary.weight_bytes = sum(info.bytes for name, info in manifest.files.items() if name.startswith("weights/"))
    summary.probe = f"recorded on the {manifest.probe.recorded_on}" if manifest.probe.prompts else "none, as there are no weights"
    reporter.print_summary()
    return summary


def _tuning_summary(tuned: Tuned | None, segments: Iterable[Lowered]) -> str:
    if tuned is None:
        return ""
    used = {name for segment in segments for name in load_plan(segment.file).tuned}
    return f"{len(used)} of {len(tuned.choices)} choices measured on {tuned.device}"


def _kernels_summary(manifest: Manifest) -> str:
    if not manifest.kernels:
        return ""
    registers = max(kernel.registers for kernel in manifest.kernels)
    spilling = sorted({f"{kernel.function} ({kernel.stack_bytes} bytes)" for kernel in manifest.kernels if kernel.stack_bytes})
    stack = f"stack in {', '.join(spilling)}" if spilling else "no stack"
    return f"{len(manifest.kernels)} cubins, {len(manifest.graphs)} CUDA graphs; at most {registers} registers, {stack}"
