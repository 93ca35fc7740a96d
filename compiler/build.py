"""`engine build`: a checkpoint to an artifact, in eight stages.

resolve -> trace -> fuse -> partition -> lower -> pack -> probe -> seal
"""

import os
from dataclasses import replace

from ..artifacts import parse_target, seal, this_machine_flags
from ..artifacts.store.store import Store, chosen_store
from ..artifacts.tuning import load_tuned
from . import environment
from .calibrate import read_calibration
from .forecast import check_warm
from .lower import Lowering
from .new_manifest import new_manifest
from .options import BuildOptions
from .pack import leave_out
from .progress import BuildSummary, Reporter
from .quantizer import PLAIN
from .stages import calibrate, calibrated, finish_with_probe, lower, pack_weights, reference, resolve, write_tokenizer
from .step_program import Wanted, step_program
from .summary import summarize, tuning_summary
from .target_kind import kind_of
from .weight_formats import widened


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
    calibration = read_calibration(options.calibrate) if options.is_calibrated else None
    store = Store(chosen_store(options.store))
    jobs = options.jobs or len(os.sched_getaffinity(0))
    with (
        seal.building(options.output, force=options.force) as scratch,
        Lowering(backend=kind.backend, store=store, jobs=jobs, artifact=scratch, debug_dump=options.debug_dump) as lowering,
        reporter.running(),
    ):
        with reporter.stage("resolve") as stage:
            checkpoint, formats = resolve(options, kind, stage)
            reporter.summary.widened = widened(checkpoint, formats)
            options = replace(options, kv_dtype=kind.kv_dtype(options.kv_dtype, checkpoint, formats))
            everything = options.weights == "all"
            forms = write_tokenizer(checkpoint, scratch, required=everything)
        wanted = Wanted.of(
            checkpoint,
            formats,
            kv_dtype=options.kv_dtype,
            kind=kind,
            disable_pass=options.disable_pass,
            capture_routes=options.capture_routes,
        )
        if options.require_warm:
            check_warm(wanted, store)
        program = step_program(wanted, store, options.debug_dump, reporter)
        with reporter.stage("lower") as stage:
            code = lower(lowering, kind.backend, program.parts, stage)
            max_context = options.max_context or checkpoint.spec.max_context
            graphs = kind.write_graphs(scratch, program.parts, code.segments, wanted.groups, max_context)
            reporter.summary.tuning = tuning_summary(tuned, code.segments.values())
        quantizing = PLAIN
        if everything and calibrated(program.weights):
            with reporter.stage("calibrate") as stage:
                quantizing = calibrate(checkpoint, calibration, store, stage)
        with reporter.stage("pack") as stage:
            weights = pack_weights(program.weights, checkpoint, scratch, quantizing, stage) if everything else leave_out(program.weights)
        with reporter.stage("probe") as stage:
            manifest = new_manifest(
                options,
                target=target,
                kind=kind,
                checkpoint=checkpoint,
                wanted=wanted,
                program=program,
                code=code,
                graphs=graphs,
                weights=weights,
                calibration=calibration.name if calibration is not None else "",
                tuned_on=tuned.device if tuned else "",
                forms=forms,
            )
            manifest = finish_with_probe(manifest, scratch, weights, lambda: reference(program, checkpoint, kind, quantizing), stage)
        with reporter.stage("seal"):
            seal.write_manifest(scratch, manifest)
            seal.seal(scratch, options.output)
    summary = reporter.summary
    summary.store_refusal = (
        store.refusal and f"{store.directory} could not keep all that was compiled ({store.refusal}); the artifact has it"
    )
    compiled = sum(not segment.reused for segment in code.segments.values())
    return summarize(reporter, options.output, manifest, compiled=compiled)
