"""What a load test says in a few numbers."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from .stream import Result


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What a request must meet to count as good, in seconds. None: no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @property
    def given(self) -> bool:
        return any(limit is not None for limit in (self.ttft_s, self.tpot_s, self.e2e_s))


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. Percentile p of n sorted values lies at index p / 100 * (n - 1), linearly between its neighbours."""

    mean: float
    p50: float
    p90: float
    p99: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Times are in seconds, rates per second of `wall_s`.

    requests = completed + failed + cut. Of the completed ones only, per request:
      ttft  time to first token: first token - start
      tpot  time per output token after the first: (last token - first token) / (tokens - 1)
      e2e   end of stream - start
      itl   inter-token latency: every gap between a token and the next, of all requests together
    A metric is None if no request has a value (one token has no tpot).
    output_tokens, prompt_tokens: of completed requests and of cut ones, as far as they came.
    output_tokens_per_s = output_tokens / wall_s; total_tokens_per_s counts prompt tokens as well.
    requests_per_s = completed / wall_s; goodput = completed requests within every limit / wall_s.
    short: completed requests with fewer tokens than they asked for.
    cached_tokens: prompt tokens that the server says it did not compute.
    """

    requests: int
    completed: int
    failed: int
    cut: int
    short: int
    wall_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput: float | None
    ttft: Distribution | None
    itl: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None


def summarize(results: Sequence[Result], wall_s: float, slo: Slo | None = None) -> Summary:
    """wall_s: what rates are per; see `span`. Goodput is None without limits."""
    completed = [result for result in results if result.completed]
    counted = [result for result in results if result.error is None]
    prompt_tokens = sum(result.prompt_tokens for result in counted if result.token_times_s)
    output_tokens = sum(result.output_tokens for result in counted)
    return Summary(
        requests=len(results),
        completed=len(completed),
        failed=len(results) - len(counted),
        cut=len(counted) - len(completed),
        short=sum(result.output_tokens < result.wanted_tokens for result in completed),
        wall_s=wall_s,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(result.cached_tokens for result in counted),
        output_tokens=output_tokens,
        requests_per_s=len(completed) / wall_s,
        output_tokens_per_s=output_tokens / wall_s,
        total_tokens_per_s=(prompt_tokens + output_tokens) / wall_s,
        goodput=sum(_is_good(result, slo) for result in completed) / wall_s if slo and slo.given else None,
        ttft=distribution([time for result in completed if (time := ttft(result)) is not None]),
        itl=distribution([after - before for result in completed for before, after in pairwise(result.token_times_s)]),
        tpot=distribution([time for result in completed if (time := tpot(result)) is not None]),
        e2e=distribution([result.end_s - result.start_s for result in completed]),
    )


def span(results: Sequence[Result]) -> float:
    """Seconds from the first start to the last end."""
    return max(result.end_s for result in results) - min(result.start_s for result in results)


def ttft(result: Result) -> float | None:
    """Time to first token, None without a token."""
    return result.token_times_s[0] - result.start_s if result.token_times_s else None


def tpot(result: Result) -> float | None:
    """Mean time per token after the first, None for fewer than two."""
    times = result.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def distribution(values: Sequence[float]) -> Distribution | None:
    """None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p99 = (percentile(ordered, p) for p in (50, 90, 99))
    return Distribution(mean=statistics.fmean(ordered), p50=p50, p90=p90, p99=p99)


def percentile(ordered: Sequence[float], p: float) -> float:
    """Percentile p, 0 to 100, of sorted values, interpolated linearly (numpy's default)."""
    place = p / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _is_good(result: Result, slo: Slo) -> bool:
    first, per_token = ttft(result), tpot(result)
    measured = (
        (math.inf if first is None else first, slo.ttft_s),
        (0.0 if per_token is None else per_token, slo.tpot_s),
        (result.end_s - result.start_s, slo.e2e_s),
    )
    return all(limit is None or seconds <= limit for seconds, limit in measured)
