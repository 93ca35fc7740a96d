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
from .workers.fleet import Fleet

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(metrics: Metrics, fleet: Fleet) -> bytes:
    """Of this moment."""
    registry = CollectorRegistry()
    registry.register(_State(metrics, fleet))
    return generate_latest(registry)


def histogram_family(name: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family = HistogramMetricFamily(name, histogram.text)
    family.add_metric([], list(zip(bounds, histogram.cumulative(), strict=True)), histogram.sum)
    return family


class _State(Collector):
    """The figures of server and workers, as they are when asked for."""

    def __init__(self, metrics: Metrics, fleet: Fleet) -> None:
        self._metrics = metrics
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        yield from self._of_workers()
        for histogram in self._metrics.histograms:
            yield histogram_family(f"engine_{histogram.name}", histogram)
        success = CounterMetricFamily("engine_request_success", "Finished sequences.", labels=["finished_reason"])
        for reason, count in self._metrics.finished_sequences.items():
            success.add_metric([reason], count)
        yield success

    def _of_workers(self) -> Iterator[Metric]:
        fleet, stats, live = self._fleet, self._fleet.stats, self._fleet.live
        lives = [replica.life for replica in fleet.replicas]
        blocks = sum(life.ready.num_blocks for life in lives if life.ready)
        running = min(stats.running, live)
        yield _gauge("num_requests_running", "Sequences being computed.", running)
        yield _gauge("num_requests_waiting", "Sequences accepted but not being computed.", live - running)
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        yield _gauge("kv_cache_blocks", "Blocks of all KV caches, 0 until the worker is ready.", blocks)
        yield _gauge("kv_cache_usage_ratio", "Share of the blocks in use, of the KV cache that is fullest, 0 to 1.", used)
        yield _counter("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens_total)
        yield _counter("generation_tokens", "Tokens generated.", stats.generation_tokens_total)
        yield _counter("num_preemptions", "Sequences put back into the queue for lack of blocks.", stats.preemptions_total)
        yield _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_query_tokens_total)
        yield _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hit_tokens_total)
        yield _counter("steps", "Scheduler steps.", stats.steps_total)
        yield _counter("jit_compilations", "Compilations while serving; anything but 0 is a bug.", stats.jit_compilations_total)
        yield _counter("worker_restarts", "Workers started to replace one that died.", sum(life.restarts for life in lives))
        yield _gauge(
            "weights_verified", "1 once the weights have been compared with the manifest, and are whole.", fleet.weights == "whole"
        )
        yield _gauge("weights_damaged", "1 if they were found to be damaged: nothing is served any more.", fleet.weights == "damaged")
        phases = GaugeMetricFamily("engine_startup_phase_seconds", "Seconds that each phase of the last start took.", labels=["phase"])
        longest = {name: max(life.phases.get(name, 0.0) for life in lives) for life in lives for name in life.phases}
        for name, seconds in (self._metrics.own_phases | longest).items():
            phases.add_metric([name], seconds)
        yield phases
        yield _gauge("replicas_ready", "Workers that serve requests, and go on with them.", sum(each.is_well for each in fleet.replicas))
        sequences = GaugeMetricFamily("engine_replica_sequences", "Sequences of each worker, running or waiting.", labels=["replica"])
        for number, replica in enumerate(fleet.replicas):
            sequences.add_metric([str(number)], replica.dispatch.sequences)
        yield sequences


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"engine_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"engine_{name}", text, value=value)
