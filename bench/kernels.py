"""Kernels alone: bytes they move and numbers they multiply, against the machine's limits."""

import time
from collections.abc import Iterator
from itertools import cycle

import msgspec
import torch

from ..artifacts import Manifest, check_code, check_machine, load_manifest
from ..errors import UsageError
from ..kernels import ops
from ..runtime.capacity.machine import default_threads
from ..runtime.kinds.choose import kind_of
from .kernel_cases import Case, LinearShape, attention_cases, compared, heads_and_rank, latent_cases, linear_cases, linear_shapes
from .limits import Limits, describe_limits, measure_limits, share_of_read
from .options import Kernels, settings
from .provenance import provenance
from .report import Report, Spread, Table

_LEAST_BATCHES = 5
_SMALLEST = LinearShape("f32", 16, 16)


class KernelResult(msgspec.Struct, frozen=True, kw_only=True):
    """seconds: per call, one value for each batch of calls. bytes, macs: per call."""

    kernel: str
    shape: str
    rows: int
    seconds: Spread
    batches: int
    bytes: int
    macs: int
    peak: str


class KernelResults(msgspec.Struct, frozen=True, kw_only=True):
    """call_s: what a call takes that computes next to nothing. It is part of every time, and compiled segments do not pay it."""

    limits: Limits | None
    call_s: float
    kernels: list[KernelResult]


def measure(options: Kernels) -> Report:
    """Raises ArtifactError for an artifact whose kernels cannot run here, UsageError for one for a GPU."""
    facts = provenance(options.artifacts)
    manifest = load_manifest(options.artifacts)
    if kind_of(manifest).uses_gpu:
        raise UsageError(f"this artifact is for {manifest.target}, and the benchmark measures kernels for CPUs", hint="use `bench latency`")
    check_machine(manifest, torch_version=torch.__version__)
    check_code(options.artifacts, manifest)
    ops.load(options.artifacts / manifest.kernel_library)
    threads = options.threads or default_threads()
    torch.set_num_threads(threads)
    limits = measure_limits(manifest.target, threads)
    with torch.inference_mode():
        (smallest,) = linear_cases(_SMALLEST, (1,))
        call_s = _time(smallest, options.seconds).seconds.median
        kernels = [_time(case, options.seconds) for case in _cases(options, manifest)]
    results = KernelResults(limits=limits, call_s=call_s, kernels=kernels)
    return Report(benchmark="kernels", tables=[_table(results)], settings=settings(options), results=results, provenance=facts)


def _cases(options: Kernels, manifest: Manifest) -> Iterator[Case]:
    torch.manual_seed(0)
    shapes = dict.fromkeys([*linear_shapes(manifest), *compared(*options.shape)])
    for shape in shapes:
        yield from linear_cases(shape, options.rows)
    for group in manifest.caches:
        if group.kind == "latent":
            yield from latent_cases(group, *heads_and_rank(manifest, group.layers[0]))
        else:
            yield from attention_cases(group, manifest.model.hidden_size // group.head_dim)


def _time(case: Case, seconds: float) -> KernelResult:
    """Calls in batches, each through all copies of the inputs if time allows, for that many seconds in all."""
    copies = cycle(range(case.copies))
    case.call(next(copies))
    batches: list[float] = []
    begin = now = time.perf_counter()
    while now - begin < seconds or len(batches) < _LEAST_BATCHES:
        before, calls = now, 0
        while calls < case.copies and (now - before < seconds / _LEAST_BATCHES or calls == 0):
            case.call(next(copies))
            calls += 1
            now = time.perf_counter()
        batches.append((now - before) / calls)
    return KernelResult(
        kernel=case.kernel,
        shape=case.shape,
        rows=case.rows,
        seconds=Spread.of(batches),
        batches=len(batches),
        bytes=case.bytes,
        macs=case.macs,
        peak=case.peak,
    )


def _share_of_peak(macs_per_s: float, peak: str, limits: Limits | None) -> str:
    if limits is None:
        return "-"
    macs = {"int8": limits.int8_macs, "bfloat16": limits.bfloat16_macs, "float32": limits.float32_macs}
    return f"{macs_per_s / macs[peak]:.0%} {peak}"


def _table(results: KernelResults) -> Table:
    limits = results.limits
    rows = []
    for kernel in results.kernels:
        seconds = kernel.seconds.median
        read, macs = kernel.bytes / seconds, kernel.macs / seconds
        rows.append(
            (
                kernel.kernel,
                kernel.shape,
                f"{kernel.rows}",
                kernel.seconds.show(1e6),
                f"{kernel.bytes / 1e6:,.2f}",
                f"{read / 1e9:.1f}",
                share_of_read(read, limits),
                f"{macs / 1e9:,.1f}",
                _share_of_peak(macs, kernel.peak, limits),
            )
        )
    columns = ("kernel", "shape", "rows", "µs (range)", "MB moved", "GB/s", "of read", "GMAC/s", "of peak")
    call = f"calling a kernel from Python is {results.call_s * 1e6:.1f} µs of each time; compiled segments call it directly"
    return Table(title="Kernels, median of calls", columns=columns, rows=rows, notes=[describe_limits(limits), call])
