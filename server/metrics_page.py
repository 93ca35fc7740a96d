"""The page at /metrics, in Prometheus' text format: what dashboards of serving engines show, with the prefix `engine_`.

Imported by whoever asks for it first.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .histogram import Histogram
from .metrics import Metrics
from .workers.client import WorkerClient

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(metrics: Metrics, worker: WorkerClient) -> bytes:
    """Of this moment."""
    registry = CollectorRegistry()
    registry.register(_State(metrics, worker))
    return generate_latest(registry)


def histogram_family(name: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family = HistogramMetricFamily(name, histogram.text)
    family.add_metric([], list(zip(bounds, histogram.cumulative(), strict=True)), histogram.sum)
    return family


class _State(Collector):
    """The figures of server and worker, as they are when asked for."""

    def __init__(self, metrics: Metrics, worker: WorkerClient) -> None:
        self._metrics = metrics
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        yield from self._of_worker()
        for histogram in self._metrics.histograms:
            yield histogram_family(f"engine_{histogram.name}", histogram)
        success = CounterMetricFamily("engine_request_success", "Finished sequences.", labels=["finished_reason"])
        for reason, count in self._metrics.finished_sequences.items():
            success.add_metric([reason], count)
        yield success

    def _of_worker(self) -> Iterator[Metric]:
        worker, life, stats = self._worker, self._worker.life, self._worker.totals.stats
        live = self._worker.dispatch.live
        running = min(stats.running, live)
        yield _gauge("num_requests_running", "Sequences being computed.", running)
        yield _gauge("num_requests_waiting", "Sequences accepted but not being computed.", live - running)
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        yield _gauge("kv_cache_blocks", "Blocks of all KV caches, 0 until the worker is ready.", life.ready.num_blocks if life.ready else 0)
        yield _gauge("kv_cache_usage_ratio", "Share of the blocks in use, of the KV cache that is fullest, 0 to 1.", used)
        yield _counter("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens_total)
        yield _counter("generation_tokens", "Tokens generated.", stats.generation_tokens_total)
        yield _counter("num_preemptions", "Sequences put back into the queue for lack of blocks.", stats.preemptions_total)
        yield _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_query_tokens_total)
        yield _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hit_tokens_total)
        yield _counter("steps", "Scheduler steps.", stats.steps_total)
        yield _counter("jit_compilations", "Compilations while serving; anything but 0 is a bug.", stats.jit_compilations_total)
        yield _counter("worker_restarts", "Workers started to replace one that died.", life.restarts)
        yield _gauge(
            "weights_verified", "1 once the weights have been compared with the manifest, and are whole.", worker.weights == "whole"
        )
        yield _gauge("weights_damaged", "1 if they were found to be damaged: nothing is served any more.", worker.weights == "damaged")
        phases = GaugeMetricFamily("engine_startup_phase_seconds", "Seconds that each phase of the last start took.", labels=["phase"])
        for name, seconds in (self._metrics.own_phases | life.phases).items():
            phases.add_metric([name], seconds)
        yield phases


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"engine_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"engine_{name}", text, value=value)
