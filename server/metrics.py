"""Prometheus metrics: the quantities that dashboards of serving engines show, with the prefix `engine_`."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .generation import Observer
from .histogram import Histogram
from .text.assembler import Plan
from .workers.client import WorkerClient

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_WHOLE_REQUEST = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))


class Metrics(Observer):
    """What this server has done. Times are in seconds, from a request's arrival on."""

    def __init__(self, worker: WorkerClient, own_phases: dict[str, float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_WorkerState(worker, own_phases))
        self._last_token: dict[str, float] = {}

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            histogram = Histogram(f"engine_{name}", text, buckets)
            self._registry.register(histogram)
            return histogram

        self._first_token = histogram("time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN)
        self._between_tokens = histogram("inter_token_latency_seconds", "Between one token and the next.", _BETWEEN_TOKENS)
        self._whole_request = histogram("e2e_request_latency_seconds", "From arrival to the last token.", _WHOLE_REQUEST)
        self._prompt_tokens = histogram("request_prompt_tokens", "Tokens of each prompt.", _TOKENS)
        self._generation_tokens = histogram("request_generation_tokens", "Tokens generated for each request.", _TOKENS)
        self._success = Counter("engine_request_success", "Finished sequences.", ["finished_reason"], registry=self._registry)
        for reason in ("stop", "length", "abort"):
            self._success.labels(reason)

    def produced(self, plan: Plan, new: int) -> None:
        now = time.monotonic()
        last = self._last_token.get(plan.id)
        if last is None:
            self._first_token.observe(now - plan.arrived)
            self._between_tokens.observe(0.0, new - 1)
        else:
            self._between_tokens.observe((now - last) / new, new)
        self._last_token[plan.id] = now

    def finished(self, plan: Plan, generated: int, reason: str) -> None:
        self._last_token.pop(plan.id, None)
        self._success.labels(reason).inc()
        if reason != "abort":
            self._whole_request.observe(time.monotonic() - plan.arrived)
            self._prompt_tokens.observe(len(plan.prompt))
            self._generation_tokens.observe(generated)

    def render(self) -> bytes:
        """The page at /metrics, in Prometheus' text format."""
        return generate_latest(self._registry)


class _WorkerState(Collector):
    """The worker's own figures, read when asked for."""

    def __init__(self, worker: WorkerClient, own_phases: dict[str, float]) -> None:
        self._worker = worker
        self._own_phases = own_phases

    def collect(self) -> Iterator[Metric]:
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
        for name, seconds in (self._own_phases | life.phases).items():
            phases.add_metric([name], seconds)
        yield phases


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"engine_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"engine_{name}", text, value=value)
