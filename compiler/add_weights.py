"""`engine pack`: an artifact's code and another checkpoint's weights to an artifact, by the stages of a build that are left.

resolve -> calibrate -> pack -> probe -> seal

The recipes come from the manifest, so nothing is traced, fused or compiled, and no compiler is
needed. Only where this machine cannot run the code does the probe need the graph once more.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from torch import fx

from ..artifacts import AnswerForms, Manifest, Probe, SamplingDefaults, load_manifest, parse_target, seal
from ..artifacts.store.store import Store, chosen_store
from ..artifacts.verify import check_files
from ..errors import ArtifactError, MismatchError
from ..models.checkpoint import Checkpoint
from ..models.open import open_checkpoint
from .calibrate import repeated_calibration
from .interpret import GraphInterpreter
from .model_facts import made_for, misfits
from .options import PackOptions
from .pack import Packed
from .progress import BuildSummary, Reporter
from .quantizer import PLAIN, Quantizing
from .stages import calibrate, calibrated, finish_with_probe, pack_weights, write_tokenizer
from .step_program import Wanted, fused_graph
from .summary import summarize
from .target_kind import NO_CACHE, TargetKind, kind_of
from .toolchain import Versions
from .weight_formats import choose_formats
from .weights_plan import PackedWeight, plan_weights


def add_weights(options: PackOptions, reporter: Reporter | None = None) -> BuildSummary:
    """Write an artifact of the code at `options.code` and the weights and tokenizer of a checkpoint.

    Raises MismatchError for a checkpoint that the code was not made for, ArtifactError for damaged code,
    what opening a checkpoint raises, and BuildError for what fails on the way; nothing is left at `output`.
    """
    reporter = reporter or Reporter(quiet=True)
    code = load_manifest(options.code)
    calibration = repeated_calibration(code.model.calibration, options.calibrate)
    plan, quantizing = planned(code), PLAIN
    with seal.building(options.output, force=options.force) as scratch, reporter.running():
        with reporter.stage("resolve") as stage:
            checkpoint = open_checkpoint(options.weights_from, ignored=options.ignore_config)
            checkpoint.spec = checkpoint.spec.for_context(code.model.max_context)
            check_fit(code, checkpoint)
            check_files(options.code, code, code.code_files)
            forms = write_tokenizer(checkpoint, scratch, required=True)
            _copy_code(options.code, code, scratch)
            stage.note(f"{checkpoint.name}: fits {code.model.name}, {len(code.code_files)} files of code")
        if calibrated(plan):
            with reporter.stage("calibrate") as stage:
                quantizing = calibrate(checkpoint, calibration, Store(chosen_store(None)), stage)
        with reporter.stage("pack") as stage:
            weights = pack_weights(plan, checkpoint, scratch, quantizing, stage)
        with reporter.stage("probe") as stage:
            manifest = _manifest(code, weights, options.name or checkpoint.name, checkpoint.generation.sampling, forms)
            manifest = finish_with_probe(manifest, scratch, weights, lambda: _reference(code, checkpoint, quantizing), stage)
        with reporter.stage("seal"):
            seal.write_manifest(scratch, manifest)
            seal.seal(scratch, options.output)
    return summarize(reporter, options.output, manifest, compiled=0)


def check_fit(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise MismatchError if the code and its recipes were made for another model than the checkpoint's, ArtifactError if nobody knows."""
    if not made_for(manifest):
        raise ArtifactError(f"{manifest.model.name} does not say what its code was made for", hint="build the artifact again")
    if rows := misfits(manifest, checkpoint):
        raise MismatchError(
            f"the code of {manifest.model.name} was made for another model than {checkpoint.name}",
            rows,
            other="checkpoint",
            hint="build this checkpoint: engine build CHECKPOINT -o DIR (what it has in common with other builds is found in the store)",
        )


def planned(manifest: Manifest) -> list[PackedWeight]:
    """The packed tensors that the manifest lists, in the order in which they lie in the files."""
    return [
        PackedWeight(
            name=name,
            dtype=weight.dtype,
            shape=tuple(weight.shape),
            format=weight.format,
            sources=tuple(weight.sources),
            recipe=tuple(weight.recipe),
            experts=weight.experts,
        )
        for name, weight in manifest.weights.items()
    ]


def _copy_code(directory: Path, manifest: Manifest, scratch: Path) -> None:
    for name in manifest.code_files:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory / name, scratch / name)


def _manifest(code: Manifest, weights: Packed, name: str, sampling: Mapping[str, float], forms: AnswerForms | None) -> Manifest:
    """The code's manifest with other weights: no digests, no probe. What the two models have in common stays."""
    return msgspec.structs.replace(
        code,
        created=int(time.time()),
        model=msgspec.structs.replace(code.model, name=name),
        has_weights=True,
        weights=weights.index,
        memory=msgspec.structs.replace(code.memory, weight_bytes=sum(info.bytes for info in weights.files.values())),
        sampling=msgspec.convert(sampling, SamplingDefaults),
        probe=Probe(recorded_on="reference", prompts=[]),
        forms=forms,
        files={},
    )


def _reference(code: Manifest, checkpoint: Checkpoint, quantizing: Quantizing) -> GraphInterpreter:
    """What computes the step in plain PyTorch, by the rewrites that the code was made with."""
    tools = code.toolchain
    kind = kind_of(parse_target(code.target), toolchain=Versions(torch=tools.torch, compiler=tools.compiler, triton=tools.triton))
    formats = choose_formats(checkpoint, code.model.quantize, kind.layout)
    graph = _graph(code, checkpoint, formats, kind)
    stored = {name: parameter.format for name, parameter in checkpoint.parameters.items()}
    return GraphInterpreter(graph, plan_weights(graph.graph, stored), checkpoint, kind.references(), quantizing)


def _graph(code: Manifest, checkpoint: Checkpoint, formats: dict[str, str], kind: TargetKind) -> fx.GraphModule:
    from ..passes.pipeline import pipeline  # imports Dynamo

    ran = {report.name for report in code.fusion}
    left_out = tuple(item.name for item in pipeline(formats, (), kind.layout) if not item.required and item.name not in ran)
    return fused_graph(
        Wanted.of(
            checkpoint,
            formats,
            kv_dtype=code.caches[0].dtype if code.caches else NO_CACHE,
            kind=kind,
            disable_pass=left_out,
            capture_routes=code.routes is not None,
        )
    )
