"""The manifest of an artifact that is being built."""

import time
from math import prod

import msgspec

from ..artifacts import AnswerForms, AnyTarget, Manifest, MemoryPlan, ModelInfo, PooledInfo, Probe, SamplingDefaults, SegmentInfo
from ..artifacts.manifest import SCHEMA_VERSION, STEP
from ..artifacts.store.ingredients import recorded
from ..models.checkpoint import Checkpoint
from .lower import KERNELS, SEGMENTS, Lowered
from .nvidia.write_graphs import Graphs
from .options import BuildOptions
from .pack import Packed, packed_bytes
from .stages import Code
from .step_program import StepProgram, Wanted
from .target_kind import TargetKind


def new_manifest(
    options: BuildOptions,
    *,
    target: AnyTarget,
    kind: TargetKind,
    checkpoint: Checkpoint,
    wanted: Wanted,
    program: StepProgram,
    code: Code,
    graphs: Graphs,
    weights: Packed,
    calibration: str,
    tuned_on: str,
    forms: AnswerForms | None,
) -> Manifest:
    """All but the digests of the files and the probe.

    wanted: what the program was made from. calibration: its name.
    tuned_on: the GPU that its choices were measured on. forms: what the chat template says.
    """
    parts, segments = program.parts, code.segments
    spec = checkpoint.spec
    calls = [call.target for call in parts.calls]
    return Manifest(
        schema=SCHEMA_VERSION,
        created=int(time.time()),
        target=str(target),
        toolchain=kind.toolchain.recorded(),
        tuned_on=tuned_on,
        ingredients=recorded([wanted.identity(), *(lowered.identity for lowered in code.all)]),
        model=ModelInfo(
            name=options.name or checkpoint.name,
            architecture=spec.architecture,
            vocab_size=spec.vocab_size,
            max_context=options.max_context or spec.max_context,
            hidden_size=spec.hidden_size,
            num_layers=len(spec.layers),
            parameters=_count_parameters(checkpoint),
            quantize=options.quantize,
            calibration=calibration,
            source_format="+".join(sorted({info.format for info in checkpoint.parameters.values() if not info.is_order})),
        ),
        pooled=pooled_info(checkpoint),
        routes=wanted.routes,
        caches=wanted.groups,
        kernel_library=_library_name(code.library) if code.library is not None else "",
        kernels=graphs.kernels,
        graphs=graphs.graphs,
        segments=[
            SegmentInfo(key=segment.key, file=_segment_name(segment), calls=calls.count(form), nodes=len(parts.forms[form]["nodes"]))
            for form, segment in segments.items()
        ],
        programs={STEP: parts.program({form: segment.key for form, segment in segments.items()})},
        has_weights=options.weights == "all",
        weights=weights.index,
        memory=MemoryPlan(
            weight_bytes=sum(info.bytes for info in weights.files.values()) or sum(packed_bytes(weight) for weight in program.weights),
            activations=program.activations,
        ),
        fusion=program.reports,
        unfused=program.unfused,
        sampling=msgspec.convert(checkpoint.generation.sampling, SamplingDefaults),
        probe=Probe(recorded_on="reference", prompts=[]),
        forms=forms,
        files={},
    )


def pooled_info(checkpoint: Checkpoint) -> PooledInfo | None:
    """What a manifest says of a checkpoint that makes no tokens."""
    pooled, pooling = checkpoint.pooled, checkpoint.spec.pooling
    if pooled is None or pooling is None:
        return None
    return PooledInfo(
        task=pooled.task,
        size=pooling.size(checkpoint.spec.hidden_size),
        pooling=pooling.kind,
        normalize=pooled.normalize,
        activation=pooled.activation,
        prompts=dict(pooled.prompts),
        default_prompt=pooled.default_prompt,
    )


def _count_parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(info.shape) for info in checkpoint.parameters.values() if not info.is_order)


def _library_name(library: Lowered) -> str:
    return f"{KERNELS}/{library.file.name}"


def _segment_name(segment: Lowered) -> str:
    return f"{SEGMENTS}/{segment.file.name}"
