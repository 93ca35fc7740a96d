"""The stages that `engine build` and `engine pack` are made of. Each reports to the `Stage` that it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..artifacts import AnswerForms, Manifest, Target, check_machine, parse_target, seal
from ..artifacts.store.store import Store
from ..errors import MismatchError, UsageError
from ..kernels.linear.blocks import FORMATS
from ..models.checkpoint import Checkpoint
from ..models.open import open_checkpoint
from . import probe
from .answer_forms import answer_forms
from .backend import Backend
from .calibrate import Calibration, importance, mean_squares
from .interpret import GraphInterpreter
from .lower import Lowered, Lowering, code_identities
from .options import BuildOptions
from .pack import Packed, pack, packed_bytes
from .partition import Partition
from .progress import Stage
from .quantizer import Quantizing, best_fit
from .step_program import StepProgram
from .target_kind import TargetKind
from .weight_formats import choose_formats
from .weights_plan import PackedWeight


def can_run(manifest: Manifest) -> bool:
    """Whether this machine runs the code. Of NVIDIA's it is never asked: a build is the same with a GPU and without."""
    try:
        check_machine(manifest)
    except MismatchError:
        return False
    return isinstance(parse_target(manifest.target), Target)


def resolve(options: BuildOptions, kind: TargetKind, stage: Stage) -> tuple[Checkpoint, dict[str, str]]:
    """Open and check the checkpoint; decide the storage format of every parameter."""
    checkpoint = open_checkpoint(options.model, weights=options.weights == "all", ignored=options.ignore_config)
    kind.check(checkpoint.spec)
    if options.capture_routes:
        kind.check_routes(checkpoint.spec)
    trained = checkpoint.spec.max_context
    if options.max_context is not None and not 1 <= options.max_context <= trained:
        raise UsageError(
            f"--max-context {options.max_context} is outside 1..{trained}", hint=f"{checkpoint.name} was made for {trained} tokens"
        )
    checkpoint.spec = checkpoint.spec.for_context(options.max_context or trained)
    stage.note(f"{checkpoint.name}: {checkpoint.spec.architecture}, {len(checkpoint.spec.layers)} layers")
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
    wanted = code_identities(backend, parts.forms)
    stage.total(len(wanted))
    done = lowering.run(
        wanted,
        on_done=lambda lowered: stage.advance(note=lowered.key[:12] + (" (reused)" if lowered.reused else "")),
        on_wait=lambda: stage.note("waiting for another build, which is compiling the same"),
    )
    return Code(library=done.get(None), segments={form: done[form] for form in parts.forms})


def calibrated(plan: list[PackedWeight]) -> bool:
    """Whether any of these weights is quantized by the importance of its input channels."""
    operations = (operation.partition(":") for weight in plan for operation in weight.recipe)
    return any(name == "quantize" and format in FORMATS and FORMATS[format].of_rows for name, _, format in operations)


def calibrate(checkpoint: Checkpoint, calibration: Calibration | None, store: Store, stage: Stage) -> Quantizing:
    """Measure the importance of input channels, and find or compile what quantizes by it. calibration: None for all channels alike."""
    fit, why_slow = best_fit(store)
    if calibration is None:
        stage.note(why_slow or "all channels alike")
        return Quantizing(fit=fit)
    stage.total(len(checkpoint.spec.layers))
    squares = mean_squares(checkpoint, calibration, stage.advance)
    stage.note(why_slow or f"layers, on {calibration.name}")
    return Quantizing(importance=importance(checkpoint, squares), fit=fit)


def pack_weights(plan: list[PackedWeight], checkpoint: Checkpoint, scratch: Path, quantizing: Quantizing, stage: Stage) -> Packed:
    """Write the weights."""
    stage.total(sum(packed_bytes(weight) for weight in plan) >> 20)
    written = 0

    def on_weight(name: str, count: int) -> None:
        nonlocal written
        stage.advance(((written + count) >> 20) - (written >> 20), note=name)
        written += count

    packed = pack(plan, checkpoint, scratch, quantizing, on_weight)
    stage.note("MiB")
    return packed


def write_tokenizer(checkpoint: Checkpoint, scratch: Path, *, required: bool) -> AnswerForms | None:
    """Write the tokenizer and load it as serving would, before anything takes long. What its chat template says; None without one.

    Raises CheckpointError for one that is required and missing or damaged, BuildError for one that could not serve.
    """
    directory = scratch / "tokenizer"
    directory.mkdir()
    if not required and not checkpoint.has_tokenizer:
        return None
    checkpoint.write_tokenizer(directory)
    return answer_forms(scratch)


def reference(program: StepProgram, checkpoint: Checkpoint, kind: TargetKind, quantizing: Quantizing) -> GraphInterpreter:
    """What computes the step in plain PyTorch."""
    return GraphInterpreter(program.graph(), program.weights, checkpoint, kind.references(), quantizing)


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
        golden = probe.record_from_reference(interpreter(), manifest, prompts)
    stage.note(f"recorded on the {golden.recorded_on}")
    return msgspec.structs.replace(manifest, probe=golden)
