"""How long a decode step and a prefill take, in this process: scheduler, executor and sampler, no HTTP."""

from itertools import product

from ..artifacts import Manifest, load_manifest
from ..options.runtime import RuntimeOptions
from ..runtime.capacity.machine import default_threads
from ..runtime.core import EngineCore
from ..runtime.kinds.choose import kind_of
from .engine_steps import EngineSteps
from .latency_results import Decode, LatencyResults, Prefill
from .latency_tables import tables
from .limits import GpuLimits, Limits, measure_gpu_limits, measure_limits
from .options import Latency, settings
from .provenance import provenance
from .report import Report
from .step_bytes import kv_bytes_read, weight_bytes_per_step


def measure(options: Latency) -> Report:
    """Raises UsageError for what the model's context or the KV cache cannot hold, ArtifactError for an artifact that cannot run."""
    facts = provenance(options.artifacts)
    manifest = load_manifest(options.artifacts)
    steps = _load(options, manifest)
    for tokens in options.prefill:
        steps.check_prefill(tokens)
    for context, batch in product(options.context, options.batch):
        steps.check_decode(batch, context, options.steps)
    if kind_of(manifest).uses_gpu:
        limits: Limits | GpuLimits | None = measure_gpu_limits()
    else:
        limits = measure_limits(manifest.target, options.threads or default_threads())
    steps.prefill(min(options.prefill))
    prefill = [Prefill(tokens=tokens, first_token_s=[steps.prefill(tokens) for _ in range(options.runs)]) for tokens in options.prefill]
    decode = [_decode(steps, manifest, batch, context, options.steps) for context, batch in product(options.context, options.batch)]
    results = LatencyResults(limits=limits, decode=decode, prefill=prefill)
    return Report(benchmark="latency", tables=tables(results), settings=settings(options), results=results, provenance=facts)


def _decode(steps: EngineSteps, manifest: Manifest, batch: int, context: int, count: int) -> Decode:
    times = steps.decode(batch, context, count)
    return Decode(
        batch=batch,
        context=context,
        step_s=[time.total_s for time in times],
        compute_s=[time.compute_s for time in times],
        weight_bytes=weight_bytes_per_step(manifest, batch),
        kv_bytes=batch * kv_bytes_read(manifest, context),
    )


def _load(options: Latency, manifest: Manifest) -> EngineSteps:
    limits = {name: getattr(options, name) for name in ("max_batch_tokens", "kv_memory", "threads")}
    core = EngineCore.load(
        options.artifacts, RuntimeOptions(max_num_seqs=max(options.batch), **limits), on_phase=lambda name, seconds: None
    )
    return EngineSteps(core, vocab_size=manifest.model.vocab_size, max_context=manifest.model.max_context)
