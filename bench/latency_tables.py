"""The tables of offline latency."""

from statistics import median
from typing import TYPE_CHECKING

from .metrics import percentile
from .report import Spread, Table

if TYPE_CHECKING:
    from .latency import LatencyResults
    from .limits import GpuLimits, Limits


def tables(results: "LatencyResults") -> list[Table]:
    return [_decode(results), _prefill(results)]


def describe_limits(limits: "Limits | GpuLimits") -> str:
    """One line for below a table."""
    from .limits import GpuLimits

    if isinstance(limits, GpuLimits):
        return f"limits, {limits.gpu}: copies read and write {limits.read_bytes / 1e9:,.1f} GB/s"
    read, int8, float32 = limits.read_bytes / 1e9, limits.int8_macs / 1e9, limits.float32_macs / 1e9
    return f"limits, {limits.threads} threads: read {read:.1f} GB/s, int8 {int8:,.0f} GMAC/s, float32 {float32:,.0f} GMAC/s"


def _decode(results: "LatencyResults") -> Table:
    columns = ("batch", "context", "ms/step p50", "p90", "computing", "tokens/s", "weights MB", "KV MB", "GB/s", "of read bandwidth")
    rows = []
    for row in results.decode:
        seconds = median(row.step_s)
        rate = (row.weight_bytes + row.kv_bytes) / seconds
        rows.append(
            (
                f"{row.batch}",
                f"{row.context:,}",
                f"{seconds * 1000:.2f}",
                f"{percentile(sorted(row.step_s), 90) * 1000:.2f}",
                f"{median(row.compute_s) * 1000:.2f}",
                f"{row.batch / seconds:,.1f}",
                f"{row.weight_bytes / 1e6:,.1f}",
                f"{row.kv_bytes / 1e6:,.1f}",
                f"{rate / 1e9:.1f}",
                f"{rate / results.limits.read_bytes:.0%}",
            )
        )
    return Table(title="Decode steps", columns=columns, rows=rows, notes=[describe_limits(results.limits)])


def _prefill(results: "LatencyResults") -> Table:
    rows = [
        (f"{row.tokens:,}", Spread.of(row.first_token_s).show(digits=3), f"{row.tokens / median(row.first_token_s):,.0f}")
        for row in results.prefill
    ]
    return Table(title="Prefill, one prompt", columns=("tokens", "s to first token", "tokens/s"), rows=rows)
