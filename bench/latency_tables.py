"""The tables of offline latency."""

from statistics import median

from .latency_results import LatencyResults
from .limits import describe_limits, share_of_read
from .metrics import percentile
from .report import Spread, Table


def tables(results: LatencyResults) -> list[Table]:
    return [_decode(results), _prefill(results)]


def _decode(results: LatencyResults) -> Table:
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
                share_of_read(rate, results.limits),
            )
        )
    return Table(title="Decode steps", columns=columns, rows=rows, notes=[describe_limits(results.limits)])


def _prefill(results: LatencyResults) -> Table:
    rows = [
        (f"{row.tokens:,}", Spread.of(row.first_token_s).show(digits=3), f"{row.tokens / median(row.first_token_s):,.0f}")
        for row in results.prefill
    ]
    return Table(title="Prefill, one prompt", columns=("tokens", "s to first token", "tokens/s"), rows=rows)
